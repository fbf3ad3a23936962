// invariant: canaries
// seed: 0
// said: with a filter that let a thread name another's pages, victims found their secrets zeroed
// attacker: kept runs 0
attack.syscall(28n, page(v(0, 'buffer')), 4096n, 4n)
// attacker: kept runs 0
attack.syscall(9n, page(v(1, 'resizable')), 4096n, 3n, 50n, 18446744073709551615n, 0n)
// attacker: kept runs 0
attack.syscall(25n, page(v(2, 'planted')), 4096n, 8192n, 1n)
