// Hostile: it takes memory until there is none.
() => {
  const hoard = [];
  for (;;) hoard.push(new Array(1000).fill("mine"));
}
