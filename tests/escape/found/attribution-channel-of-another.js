// invariant: attribution
// seed: 0
// said: without the rule about descriptors a thread spoke on another channel, whose tenant was blamed
// attacker: kept runs 0
frame(v(1, 'channel'), [4, 0, 0, 0, 9, 9, 9, 9])
