// Hostile: never ends by itself.
() => {
  for (;;);
}
