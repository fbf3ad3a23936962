// Hostile: allocates memory until none is left.
() => {
  const hoard = [];
  for (;;) hoard.push(new Array(1000).fill("mine"));
}
