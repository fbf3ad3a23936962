//! The houses that `cargo xtask imports` checks: their rooms, and which rooms each may import.

/// The sources of one program.
pub(super) struct House {
    pub(super) folder: &'static str,
    /// A file belongs to the room with the longest name that fits.
    pub(super) rooms: &'static [Room],
    /// Rooms that every other room may import.
    pub(super) open: &'static [&'static str],
    /// Imports, from and to, that break a rule and are tolerated until they are removed. A removed
    /// import must be removed here too.
    pub(super) known: &'static [(&'static str, &'static str)],
}

/// A folder or a file, by its path as a module.
pub(super) struct Room {
    pub(super) name: &'static str,
    pub(super) may: &'static [&'static str],
    /// What the room is, for the error message.
    pub(super) is: &'static str,
}

pub(super) const fn room(name: &'static str, may: &'static [&'static str], is: &'static str) -> Room {
    Room { name, may, is }
}

pub(super) const ALL: &[House] = &[SUPERVISOR, WORKER, HARDENING, CORDON];

const SUPERVISOR: House = House {
    folder: "daemon/supervisor/src",
    rooms: &[
        room("", &[], "it starts the daemon"),
        room(
            "seams",
            &["runs", "daemon", "homes", "cordons", "state", "tenants", "workers", "api", "housekeeping"],
            "the fuzzer calls it, and nothing else does",
        ),
        room(
            "housekeeping",
            &["runs", "daemon", "homes", "cordons", "state", "tenants", "workers"],
            "it knows nothing of the API",
        ),
        room(
            "api",
            &["runs", "daemon", "homes", "cordons", "state", "tenants", "workers"],
            "it is the outermost room of the program",
        ),
        room("runs", &["daemon", "homes", "cordons", "state", "tenants", "workers"], "it knows nothing of the API"),
        room("daemon", &["homes", "cordons", "state", "tenants", "workers"], "it holds the parts that runs need"),
        room("homes", &["cordons", "state", "tenants", "workers"], "it puts tenants into processes"),
        room("cordons", &["state", "tenants"], "it judges by what is reported to it"),
        room("state", &["tenants"], "it keeps what outlives the daemon"),
        room("tenants", &[], "it is data and its rules, and knows no process"),
        room("workers", &[], "it knows processes and their slots, not tenants"),
        room("events", &[], "every room may emit events, and it imports none of them"),
        room("clock", &[], "it is below all others"),
        // The configuration holds the policy of tenants that have none of their own.
        room("config", &["tenants"], "it is below all others but tenants"),
        room("descriptors", &[], "it is below all others"),
        room("files", &[], "it is below all others"),
        room("json_text", &[], "it is below all others"),
        room("logging", &[], "it is below all others"),
        room("paths", &[], "it is below all others"),
        room("peers", &[], "it is below all others"),
        room("ranges", &["tenants"], "it is below all others but tenants"),
        room("rights", &[], "it is below all others"),
        room("run_id", &[], "it is below all others"),
        room("share", &[], "it is below all others"),
    ],
    open: &[
        "events",
        "clock",
        "config",
        "descriptors",
        "files",
        "json_text",
        "logging",
        "paths",
        "peers",
        "ranges",
        "rights",
        "run_id",
        "share",
    ],
    known: &[],
};

const WORKER: House = House {
    folder: "daemon/worker/src",
    rooms: &[
        room("", &[], "it starts the worker"),
        room("raw", &["engine", "engine/start", "engine/isolate", "engine/memory"], "it is the engine in a bare loop"),
        room("host", &["tenant", "watchdog", "control", "engine/memory"], "it holds threads, and runs nothing itself"),
        room(
            "tenant",
            &["watchdog", "engine/run", "engine/isolate", "engine/memory", "engine/attack"],
            "it is one thread, and knows nothing of the others",
        ),
        room("control", &[], "it is the channel to the supervisor"),
        room("watchdog", &[], "it knows clocks and causes, and nothing of what runs"),
        room("engine", &[], "it names its rooms"),
        room(
            "engine/start",
            &["engine/attack", "engine/memory", "engine/last_words", "engine/kernel"],
            "it comes before all tenants",
        ),
        room(
            "engine/run",
            &[
                "watchdog",
                "engine/attack",
                "engine/isolate",
                "engine/natives",
                "engine/modules",
                "engine/memory",
                "engine/last_words",
                "engine/values",
                "engine/kernel",
            ],
            "it is the outermost room of the engine",
        ),
        room(
            "engine/isolate",
            &["engine/natives", "engine/modules", "engine/memory", "engine/last_words"],
            "it knows isolates, and not what a run is",
        ),
        room("engine/attack", &["watchdog", "engine/natives", "engine/memory"], "it is in no release"),
        room(
            "engine/natives",
            &["engine/memory", "engine/values", "engine/kernel"],
            "each native has a slot of its own, and knows neither runs nor isolates at rest",
        ),
        room(
            "engine/modules",
            &["watchdog", "engine/memory", "engine/values"],
            "it has a slot of its own, and knows neither runs nor isolates at rest",
        ),
        room(
            "engine/memory",
            &["watchdog", "engine/last_words", "engine/kernel"],
            "it knows threads and limits, and not what runs in an isolate",
        ),
        room("engine/last_words", &["engine/kernel"], "it must work when nothing else does"),
        room("engine/values", &[], "it is below all others"),
        room("engine/kernel", &[], "it is below all others"),
    ],
    open: &[],
    known: &[],
};

const HARDENING: House = House {
    folder: "hardening/src",
    rooms: &[
        room("", &[], "it names its rooms"),
        room("verify", &["jail", "filter", "layers", "process"], "it compares a worker with what it should be"),
        room("posture", &["islands", "layers", "process"], "it asks the machine, and confines nothing"),
        room("jail", &["layers", "process"], "its steps come before V8, keys and filters"),
        room("filter", &["islands", "layers"], "it knows addresses and keys, and not how they came about"),
        room("fault", &["islands", "process"], "its handler may rely only on frozen values and system calls"),
        room("islands", &["process"], "it knows slots and keys, and nothing that confines them"),
        room("layers", &[], "it only gives names"),
        room("process", &[], "it wraps system calls"),
        room("paths", &[], "it only gives paths"),
    ],
    open: &[],
    known: &[],
};

const CORDON: House = House {
    folder: "cordon/src",
    rooms: &[
        room("", &[], "it holds the levels"),
        room("decide", &["rules", "score", "signal"], "it takes scores to levels"),
        room("score", &["rules", "signal"], "it adds up signals"),
        room("place", &["decide"], "it compares traits"),
        room("rules", &["blame", "deaths", "shape", "signal"], "it collects the numbers"),
        room("shape", &["signal"], "it turns samples into signals"),
        room("blame", &["signal"], "it turns an end into a consequence"),
        room("deaths", &[], "it counts"),
        room("moving", &[], "it compares levels"),
        room("standby", &[], "it adds up arrivals"),
        room("audit", &[], "it is a chain of lines"),
        room("signal", &[], "it is below all others"),
        room("time", &[], "it is below all others"),
    ],
    open: &["", "time"],
    known: &[],
};
