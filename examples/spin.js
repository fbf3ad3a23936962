// Hostile: it never ends by itself.
() => {
  for (;;);
}
