// invariant: attribution
// seed: 0
// said: without the rule about descriptors a thread spoke as another tenant, which was blamed
// attacker: kept runs 0
frame(v(1, 'channel'), [4, 0, 0, 0, 9, 9, 9, 9])
