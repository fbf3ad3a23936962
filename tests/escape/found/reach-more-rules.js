// invariant: reach
// seed: 0
// said: with a rule for getppid and one for memory that becomes executable, both calls returned
// attacker: kept runs 0
attack.syscall(110n)
// attacker: kept runs 0
attack.syscall(10n, page(O), 4096n, 7n)
