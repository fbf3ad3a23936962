// invariant: limits
// seed: 0
// said: a limit of time that was not armed again for a kept isolate let its second run spin
// attacker: kept runs 3
turns > 1 && (() => { for (;;); })()
