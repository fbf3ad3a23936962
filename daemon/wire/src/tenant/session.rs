//! The protocol of a tenant channel: refuses frames that are out of order or larger than a run may
//! send.

use super::{FromTenant, RunId};
use crate::limits::Limits;
use crate::{MAX_ERROR_BYTES, MAX_ERROR_NAME_BYTES};

/// A frame that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("Ready was sent twice without a run in between")]
    ReadyTwice,
    #[error("Left was sent during a run")]
    LeftRunning,
    #[error("a frame after Left")]
    AfterLeft,
    #[error("{frame} for {claimed}, but the run is {actual:?}")]
    WrongRun { frame: &'static str, claimed: RunId, actual: Option<RunId> },
    #[error("a log without a run")]
    LogWithoutRun,
    #[error("the code of {0} was requested, and had been sent already")]
    NeedsTwice(RunId),
    #[error("a log frame without a line")]
    EmptyLog,
    #[error("an error of more than {MAX_ERROR_NAME_BYTES} bytes of name, or {MAX_ERROR_BYTES} of message or stack")]
    LongError,
    #[error("more than {0} bytes of log in one run")]
    LogFlood(u64),
}

/// How many bytes a line counts for besides its text: for its time, level and length.
const LINE_OVERHEAD_BYTES: u64 = 16;
/// How many bytes a log frame counts for besides its lines. Each line may be a frame of its own.
const FRAME_OVERHEAD_BYTES: u64 = 16;

/// The supervisor's view of one tenant channel.
#[derive(Debug, Default)]
pub struct Session {
    warm: bool,
    left: bool,
    running: Option<RunId>,
    /// Whether the code of the run has not been sent yet.
    may_need_code: bool,
    log_bytes: u64,
    log_cap: u64,
}

impl Session {
    /// Whether the thread has a warm isolate and no run.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.warm && self.running.is_none()
    }

    #[must_use]
    pub fn running(&self) -> Option<RunId> {
        self.running
    }

    /// Notes that a run is to be sent, with its code or without. Returns false if another run is in
    /// progress; then the caller must not send this one.
    #[must_use]
    pub fn start(&mut self, run: RunId, limits: &Limits, with_code: bool) -> bool {
        if self.running.is_some() {
            return false;
        }
        self.running = Some(run);
        self.may_need_code = !with_code;
        self.log_bytes = 0;
        let lines = u64::from(limits.log_lines);
        self.log_cap = u64::from(limits.log_bytes) + lines * (LINE_OVERHEAD_BYTES + FRAME_OVERHEAD_BYTES);
        true
    }

    /// Checks a frame that came in.
    ///
    /// # Errors
    /// The frame was not allowed: the worker must be killed.
    pub fn accept(&mut self, frame: &FromTenant) -> Result<(), ProtocolError> {
        match frame {
            _ if self.left => Err(ProtocolError::AfterLeft),
            FromTenant::Ready { .. } if self.warm => Err(ProtocolError::ReadyTwice),
            FromTenant::Ready { .. } => {
                self.warm = true;
                Ok(())
            }
            FromTenant::Needs(id) => {
                self.expect("Needs", *id)?;
                if std::mem::take(&mut self.may_need_code) { Ok(()) } else { Err(ProtocolError::NeedsTwice(*id)) }
            }
            FromTenant::Log(lines) => {
                if self.running.is_none() {
                    return Err(ProtocolError::LogWithoutRun);
                }
                if lines.is_empty() {
                    return Err(ProtocolError::EmptyLog);
                }
                self.count_log(lines.iter().fold(FRAME_OVERHEAD_BYTES, |sum, line| {
                    sum.saturating_add(line.text.len() as u64 + LINE_OVERHEAD_BYTES)
                }))
            }
            FromTenant::Done(done) => {
                self.expect("Done", done.id)?;
                if done.error.as_ref().is_some_and(|error| !error.is_bounded()) {
                    return Err(ProtocolError::LongError);
                }
                self.running = None;
                self.warm = false;
                Ok(())
            }
            FromTenant::Aborting { id, .. } => self.expect("Aborting", *id),
            FromTenant::Left { .. } if self.running.is_some() => Err(ProtocolError::LeftRunning),
            FromTenant::Left { .. } => {
                self.left = true;
                Ok(())
            }
        }
    }

    fn count_log(&mut self, bytes: u64) -> Result<(), ProtocolError> {
        self.log_bytes = self.log_bytes.saturating_add(bytes);
        if self.log_bytes > self.log_cap { Err(ProtocolError::LogFlood(self.log_cap)) } else { Ok(()) }
    }

    /// Counts a log frame that was not decoded, by its bytes. That is at most what its lines would
    /// have counted for.
    ///
    /// # Errors
    /// As for [`Session::accept`].
    pub fn skip_log(&mut self, bytes: usize) -> Result<(), ProtocolError> {
        if self.running.is_none() {
            return Err(ProtocolError::LogWithoutRun);
        }
        self.count_log(bytes as u64)
    }

    /// Notes the end of the run, from a frame that was not decoded.
    pub fn skip_end(&mut self) {
        self.running = None;
        self.warm = false;
    }

    fn expect(&self, frame: &'static str, claimed: RunId) -> Result<(), ProtocolError> {
        if self.running == Some(claimed) {
            Ok(())
        } else {
            Err(ProtocolError::WrongRun { frame, claimed, actual: self.running })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MAX_LOG_LINES;
    use crate::tenant::tests::{done, line};
    use crate::tenant::{Level, LogLine, ScriptError};

    const LIMITS: Limits = Limits {
        cpu_ms: 1,
        wall_ms: 1,
        memory_mb: 1,
        output_bytes: 1,
        log_bytes: 100,
        log_lines: 10,
        timers: 1,
        ..Limits::DEFAULT
    };

    fn start(session: &mut Session, id: u128) -> bool {
        session.start(RunId(id), &LIMITS, false)
    }

    #[test]
    fn left_is_refused_during_a_run_and_is_the_last_frame() {
        let (mut session, left) = (Session::default(), FromTenant::Left { cpu_us: 0 });
        assert!(start(&mut session, 1));
        assert_eq!(session.accept(&left), Err(ProtocolError::LeftRunning));
        assert_eq!(session.accept(&done(1)), Ok(()));
        assert_eq!(session.accept(&left), Ok(()));
        assert_eq!(session.accept(&FromTenant::Ready { cpu_us: 0 }), Err(ProtocolError::AfterLeft));
    }

    #[test]
    fn a_second_run_waits_for_the_end_of_the_first() {
        let mut session = Session::default();
        assert!(start(&mut session, 1));
        assert!(!start(&mut session, 2));
        assert_eq!(session.accept(&done(1)), Ok(()));
        assert!(start(&mut session, 2));
    }

    #[test]
    fn a_done_for_another_run_is_refused() {
        let mut session = Session::default();
        assert!(start(&mut session, 1));
        assert!(matches!(session.accept(&done(2)), Err(ProtocolError::WrongRun { .. })));
    }

    #[test]
    fn a_skipped_log_counts_and_never_more_than_a_decoded_one() {
        let mut session = Session::default();
        assert_eq!(session.skip_log(1), Err(ProtocolError::LogWithoutRun));
        assert!(start(&mut session, 1));
        let skipped = (0..100).take_while(|_| session.skip_log(40).is_ok()).count();
        assert_eq!(skipped, 10, "the cap is 420 bytes");
        for (lines, bytes) in [(1, 0), (1, 70_000), (400, 200), (MAX_LOG_LINES, 3)] {
            let line = LogLine { t_ms: u32::MAX, level: Level::Error, text: "x".repeat(bytes) };
            let counted = FRAME_OVERHEAD_BYTES + lines as u64 * (bytes as u64 + LINE_OVERHEAD_BYTES);
            let log =
                crate::encode(&FromTenant::Log(vec![line; lines]), crate::MAX_FROM_TENANT_BYTES).unwrap_or_default();
            let body = log.get(crate::frame::HEADER_BYTES..).unwrap_or_default();
            assert_eq!(body.first(), Some(&FromTenant::LOG_TAG));
            assert!(body.len() as u64 <= counted, "{lines} lines of {bytes} bytes");
        }
    }

    #[test]
    fn a_done_without_a_run_is_refused() {
        assert!(matches!(Session::default().accept(&done(2)), Err(ProtocolError::WrongRun { .. })));
    }

    #[test]
    fn code_may_be_requested_once_and_only_if_it_was_not_sent() {
        let (mut session, needs) = (Session::default(), FromTenant::Needs(RunId(1)));
        assert!(start(&mut session, 1));
        assert_eq!(session.accept(&needs), Ok(()));
        assert_eq!(session.accept(&needs), Err(ProtocolError::NeedsTwice(RunId(1))));
        let mut session = Session::default();
        assert!(session.start(RunId(1), &LIMITS, true));
        assert_eq!(session.accept(&needs), Err(ProtocolError::NeedsTwice(RunId(1))));
        assert!(matches!(session.accept(&FromTenant::Needs(RunId(2))), Err(ProtocolError::WrongRun { .. })));
    }

    #[test]
    fn a_log_flood_is_refused() {
        let mut session = Session::default();
        assert!(start(&mut session, 1));
        let line = LogLine { t_ms: 0, level: Level::Log, text: "x".repeat(10_000) };
        assert!(matches!(session.accept(&FromTenant::Log(vec![line])), Err(ProtocolError::LogFlood(_))));
    }

    #[test]
    fn a_log_without_a_line_is_refused_and_frames_count() {
        let mut session = Session::default();
        assert!(start(&mut session, 1));
        assert_eq!(session.accept(&FromTenant::Log(Vec::new())), Err(ProtocolError::EmptyLog));
        // The most lines that the limits allow, each in a frame of its own, with all the text they
        // allow.
        for _ in 0..LIMITS.log_lines {
            assert_eq!(session.accept(&FromTenant::Log(vec![line("0123456789")])), Ok(()));
        }
        assert!(matches!(session.accept(&FromTenant::Log(vec![line("")])), Err(ProtocolError::LogFlood(_))));
    }

    #[test]
    fn an_error_longer_than_a_worker_sends_is_refused() {
        let error = |name, message, stack| {
            let stack = Some("x".repeat(stack));
            ScriptError { name: "x".repeat(name), message: "ä".repeat(message / 2), stack }
        };
        let (name, most) = (MAX_ERROR_NAME_BYTES, MAX_ERROR_BYTES);
        for (error, fits) in [
            (error(name, most, most), true),
            (error(name + 1, 0, 0), false),
            (error(0, most + 2, 0), false),
            (error(0, 0, most + 1), false),
            (error(name + 1, most + 99, most + 99).bounded(), true),
        ] {
            let mut session = Session::default();
            assert!(start(&mut session, 1));
            let FromTenant::Done(mut done) = done(1) else { unreachable!() };
            done.error = Some(error);
            assert_eq!(session.accept(&FromTenant::Done(done)).is_ok(), fits);
        }
    }

    proptest! {
        /// In whatever order frames arrive, at most one `Done` is accepted for each run.
        #[test]
        fn each_run_ends_at_most_once(steps in proptest::collection::vec((0_u8..4, 0_u128..4), 0..200)) {
            let mut session = Session::default();
            let (mut started, mut ended) = (0, 0);
            for (step, id) in steps {
                match step {
                    0 => started += u32::from(start(&mut session, id)),
                    1 => ended += u32::from(session.accept(&done(id)).is_ok()),
                    2 => drop(session.accept(&FromTenant::Ready { cpu_us: 0 })),
                    _ => drop(session.accept(&FromTenant::Aborting { id: RunId(id), certain: true })),
                }
                prop_assert!(ended <= started && started <= ended + 1);
            }
        }
    }
}
