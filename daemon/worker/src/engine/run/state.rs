//! The state that natives, modules and callbacks find in the isolate during a run. Each part of it
//! has an isolate slot of its own.

use std::sync::Arc;

use enisle_wire::tenant::{Advice, Code};

use crate::engine::isolate::shelf::Evaluated;
use crate::engine::modules::Modules;
use crate::engine::natives::callbacks::Failures;
use crate::engine::natives::console::Log;
use crate::engine::natives::timers::Timers;
use crate::watchdog::Watched;

/// The code of a run.
#[derive(Debug)]
pub(crate) enum Source {
    /// For a warm isolate, in which no script has run.
    Code(Code),
    /// For the isolate in which the script was evaluated by an earlier run.
    Evaluated(Evaluated),
}

/// The state that a run begins with.
pub(super) struct Begun {
    pub(super) state: State,
    /// The name of the main module, which must still be evaluated. Empty if there are `exports`
    /// already.
    pub(super) main: String,
    pub(super) exports: Option<v8::Global<v8::Value>>,
}

impl Source {
    /// Whether the code came as one file.
    pub(super) fn is_short(&self) -> bool {
        matches!(self, Self::Code(Code::Short(_)))
    }

    pub(super) fn begin(self, log: Log, mut timers: Timers, worker_entrypoint: &v8::Global<v8::Value>) -> Begun {
        let (modules, main, exports) = match self {
            Self::Evaluated(known) => {
                timers.go_on_from(known.last_timer);
                (known.modules, String::new(), Some(known.exports))
            }
            Self::Code(code) => {
                let (modules, main) = Modules::new(code, worker_entrypoint.clone());
                (modules, main, None)
            }
        };
        Begun { state: State { log, timers, modules }, main, exports }
    }
}

/// The state that outlasts the run's time in the isolate.
#[derive(Debug)]
pub(super) struct State {
    log: Log,
    timers: Timers,
    modules: Modules,
}

impl State {
    /// Puts this state into the isolate's slots, and with it what lives only while the run is in
    /// the isolate.
    pub(super) fn enter(self, isolate: &mut v8::Isolate, watched: &Arc<Watched>) {
        isolate.set_slot(self.log);
        isolate.set_slot(self.timers);
        isolate.set_slot(self.modules);
        isolate.set_slot(Failures::default());
        isolate.set_slot(Advice::default());
        isolate.set_slot(Arc::clone(watched));
    }

    /// Empties the isolate's slots, and returns this state and the advice.
    pub(super) fn leave(isolate: &mut v8::Isolate) -> Option<(Self, Advice)> {
        isolate.remove_slot::<Arc<Watched>>();
        isolate.remove_slot::<Failures>();
        let state =
            Self { log: isolate.remove_slot()?, timers: isolate.remove_slot()?, modules: isolate.remove_slot()? };
        Some((state, isolate.remove_slot()?))
    }
}

/// What is left of a run's state when it is over.
pub(super) struct Left {
    pub(super) advice: Advice,
    /// Whether console lines were dropped.
    pub(super) truncated: bool,
    /// The state for the next run of the script.
    pub(super) evaluated: Option<Evaluated>,
}

impl Left {
    /// Sends the console lines that wait. `exports` are the main module's, if the isolate is to be
    /// kept; `heap_bytes` is the size of its heap.
    pub(super) fn of(
        state: Option<(State, Advice)>,
        exports: Option<v8::Global<v8::Value>>,
        heap_bytes: usize,
    ) -> Self {
        let Some((State { mut log, timers, modules }, advice)) = state else {
            return Self { advice: Advice::default(), truncated: true, evaluated: None };
        };
        log.flush();
        let last_timer = timers.last();
        let evaluated = exports.map(|exports| Evaluated { modules, exports, last_timer, heap_bytes });
        Self { advice, truncated: log.truncated, evaluated }
    }
}
