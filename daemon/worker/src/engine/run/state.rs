//! What natives, modules and callbacks find in the isolate while a run is in it, each in a slot of
//! its own.

use std::sync::Arc;

use enisle_wire::tenant::{Advice, Code};

use crate::engine::isolate::shelf::Evaluated;
use crate::engine::modules::Modules;
use crate::engine::natives::callbacks::Failures;
use crate::engine::natives::console::Log;
use crate::engine::natives::timers::Timers;
use crate::watchdog::Watched;

/// What a run is a run of.
#[derive(Debug)]
pub(crate) enum Source {
    /// In a warm isolate that nothing has run in.
    Code(Code),
    /// In the isolate that it was evaluated in.
    Evaluated(Evaluated),
}

/// What a run begins with.
pub(super) struct Begun {
    pub(super) state: State,
    /// The name of the main module, which has yet to be evaluated if there are no exports.
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

/// What outlasts the isolate's part of a run.
#[derive(Debug)]
pub(super) struct State {
    log: Log,
    timers: Timers,
    modules: Modules,
}

impl State {
    /// Puts everything into the isolate's slots, beside what every run begins without.
    pub(super) fn enter(self, isolate: &mut v8::Isolate, watched: &Arc<Watched>) {
        isolate.set_slot(self.log);
        isolate.set_slot(self.timers);
        isolate.set_slot(self.modules);
        isolate.set_slot(Failures::default());
        isolate.set_slot(Advice::default());
        isolate.set_slot(Arc::clone(watched));
    }

    /// Takes everything out again, with what was asked for in vain.
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
    /// Lines of the console were dropped.
    pub(super) truncated: bool,
    /// What the next run of the script goes on from.
    pub(super) evaluated: Option<Evaluated>,
}

impl Left {
    /// Sends on what waits of the console. `exports` are the main module's, if the script stays;
    /// `heap_bytes` is what it has on the heap then.
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
