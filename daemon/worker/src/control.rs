//! The worker's end of the control channel: frames, and the descriptors that come with them.

use std::collections::VecDeque;
use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use enisle_hardening::process::fds;
use enisle_wire::control::{FromWorker, Start, ToWorker};
use enisle_wire::frame::{HEADER_BYTES, body_len};
use enisle_wire::{FrameError, MAX_FROM_WORKER_BYTES, MAX_TO_WORKER_BYTES, decode, write_frame};

/// The sending half. Any of the worker's own threads may send whole frames.
#[derive(Debug, Clone)]
pub(crate) struct Speaker(Arc<Mutex<Arc<UnixStream>>>);

impl Speaker {
    pub(crate) fn say(&self, frame: &FromWorker) -> Result<(), FrameError> {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut &**channel, frame, MAX_FROM_WORKER_BYTES)
    }
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Control {
    channel: Arc<UnixStream>,
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Control {
    pub(crate) fn new(channel: UnixStream) -> Self {
        Self { channel: Arc::new(channel), buffer: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Makes the sending half. Threads that send at the same time must share one, by cloning it:
    /// two that were made here have a lock each, and would write into each other's frames.
    pub(crate) fn speaker(&self) -> Speaker {
        Speaker(Arc::new(Mutex::new(Arc::clone(&self.channel))))
    }

    /// Waits for the first frame.
    pub(crate) fn start(&mut self) -> Result<Start, Box<dyn Error>> {
        loop {
            match self.buffered()? {
                Some(ToWorker::Start(start)) => return Ok(start),
                Some(_) => return Err("the first frame was not Start".into()),
                None if self.receive()? => {}
                None => return Err("the daemon closed the channel before it sent a frame".into()),
            }
        }
    }

    /// The oldest descriptor that has arrived and that nothing has taken yet.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Receives once, and waits until there is something. False at the end of the channel.
    pub(crate) fn receive(&mut self) -> Result<bool, Box<dyn Error>> {
        let mut bytes = [0; 4096];
        let (got, descriptors) = fds::receive(self.channel.as_fd(), &mut bytes)?;
        self.buffer.extend(bytes.iter().take(got));
        self.descriptors.extend(descriptors);
        Ok(got > 0)
    }

    /// The next frame, if all of it has arrived.
    pub(crate) fn buffered(&mut self) -> Result<Option<ToWorker>, Box<dyn Error>> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let end = HEADER_BYTES + body_len(*header, MAX_TO_WORKER_BYTES)?;
        let Some(body) = self.buffer.get(HEADER_BYTES..end) else { return Ok(None) };
        let frame = decode(body)?;
        self.buffer.drain(..end);
        Ok(Some(frame))
    }
}
