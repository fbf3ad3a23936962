//! Why a run that has been tried often enough is given up.

/// The run has no outcome of its own; its report says `workerLost`, and this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GaveUp {
    #[error("the worker process died twice under this run; the last time {0}")]
    DiedTwice(String),
    #[error("this run was begun again and again because its tenant was moved while it ran")]
    Moved,
    #[error("this run was never begun: no worker process lived long enough to come to it")]
    NeverBegun,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_given_up_says_what_happened_to_it() {
        let died = GaveUp::DiedTwice("it was killed by SIGKILL".to_owned()).to_string();
        assert!(died.contains("died twice") && died.ends_with("it was killed by SIGKILL"), "{died}");
        for (why, word) in [(GaveUp::Moved, "moved"), (GaveUp::NeverBegun, "never begun")] {
            let said = why.to_string();
            assert!(said.contains(word) && !said.contains("died twice"), "{said}");
        }
    }
}
