//! Judges the outcomes of one program in several engines.

use super::engines::Outcome;

/// The verdict on one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// At least two engines finished the program, and all of these had the same outcome.
    Agreed,
    /// Fewer than two engines finished the program, or its result is in doubt.
    NotComparable,
    /// Two modes of the same V8 had different outcomes.
    Differed,
    /// A worker died, and no limit explains the death.
    Died,
}

/// Compares the outcomes of a program in the engines of this build. An engine in which a limit
/// ended the program is left out. If the result is in doubt in one engine, nothing is compared.
pub fn judge(outcomes: &[(&'static str, Outcome)]) -> Verdict {
    if outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Died(_))) {
        return Verdict::Died;
    }
    if outcomes.iter().any(|(_, outcome)| *outcome == Outcome::InDoubt) {
        return Verdict::NotComparable;
    }
    let mut finished = outcomes.iter().map(|(_, outcome)| outcome).filter(|outcome| is_finished(outcome));
    match (finished.next(), finished.next()) {
        (Some(first), Some(second)) if first == second && finished.all(|other| other == first) => Verdict::Agreed,
        (Some(_), Some(_)) => Verdict::Differed,
        _ => Verdict::NotComparable,
    }
}

/// Whether both modes of Node.js agree with each other and differ from our engines. That is of
/// interest, but not a finding, because the V8 of Node.js is another version.
pub fn differs_from_node(ours: &[(&'static str, Outcome)], node: &[(&'static str, Outcome)]) -> bool {
    let ours = ours.iter().map(|(_, outcome)| outcome).find(|outcome| is_finished(outcome));
    match (ours, node) {
        (Some(ours), [(_, first), (_, second)]) => first == second && is_finished(first) && ours != first,
        _ => false,
    }
}

fn is_finished(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Computed(_) | Outcome::Threw(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(text: &str) -> Outcome {
        Outcome::Computed(text.to_owned())
    }

    fn verdict(outcomes: &[Outcome]) -> Verdict {
        judge(&outcomes.iter().map(|outcome| ("engine", outcome.clone())).collect::<Vec<_>>())
    }

    #[test]
    fn a_result_that_differs_is_found_wherever_it_is() {
        let (same, other) = (computed("1"), computed("2"));
        assert_eq!(verdict(&[same.clone(), same.clone(), same.clone()]), Verdict::Agreed);
        for at in 0..3 {
            let mut outcomes = vec![same.clone(); 3];
            outcomes[at] = other.clone();
            assert_eq!(verdict(&outcomes), Verdict::Differed);
            outcomes[at] = Outcome::Threw("TypeError".to_owned());
            assert_eq!(verdict(&outcomes), Verdict::Differed);
            outcomes[at] = Outcome::Died("a fault".to_owned());
            assert_eq!(verdict(&outcomes), Verdict::Died);
        }
    }

    #[test]
    fn what_a_limit_ended_is_not_compared() {
        let (same, limited) = (computed("1"), Outcome::Limited("exceededCpu".to_owned()));
        assert_eq!(verdict(&[same.clone(), limited.clone(), same.clone()]), Verdict::Agreed);
        assert_eq!(verdict(&[same.clone(), limited.clone(), limited.clone()]), Verdict::NotComparable);
        assert_eq!(verdict(&[same.clone(), Outcome::InDoubt, computed("2")]), Verdict::NotComparable);
        assert_eq!(verdict(&[limited, same, computed("2")]), Verdict::Differed);
    }

    #[test]
    fn node_differs_only_if_both_its_modes_do() {
        let named = |outcome: &Outcome| ("node", outcome.clone());
        let (ours, other) = (computed("1"), computed("2"));
        assert!(differs_from_node(&[named(&ours)], &[named(&other), named(&other)]));
        assert!(!differs_from_node(&[named(&ours)], &[named(&ours), named(&other)]));
        assert!(!differs_from_node(&[named(&ours)], &[named(&Outcome::InDoubt), named(&Outcome::InDoubt)]));
    }
}
