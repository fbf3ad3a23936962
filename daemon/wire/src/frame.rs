//! Length-prefixed frames. The length is checked against a cap before the body is read, and an
//! incomplete frame is refused.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes in front of every frame: the length of its body, little endian.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer closed its end")]
    Closed,
    #[error("a frame of {len} bytes is over this channel's cap of {cap}")]
    TooLong { len: usize, cap: usize },
    #[error("a frame does not decode: {0}")]
    Malformed(postcard::Error),
    #[error("a frame has {0} bytes after its message")]
    Trailing(usize),
    #[error("a frame cannot be encoded: {0}")]
    Unencodable(postcard::Error),
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

/// The length that a header announces, if `cap` allows it.
///
/// # Errors
/// [`FrameError::TooLong`], before anything is allocated.
pub fn body_len(header: [u8; HEADER_BYTES], cap: usize) -> Result<usize, FrameError> {
    let len = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if len > cap { Err(FrameError::TooLong { len, cap }) } else { Ok(len) }
}

/// `message` with its header in front.
///
/// # Errors
/// [`FrameError::TooLong`] if `message` exceeds `cap`: the sender's own mistake, found before
/// sending.
pub fn encode<T: Serialize>(message: &T, cap: usize) -> Result<Vec<u8>, FrameError> {
    append(Vec::new(), message, cap)
}

/// Appends `message` as a frame to `frames`.
///
/// # Errors
/// As for [`encode`].
pub fn append<T: Serialize>(mut frames: Vec<u8>, message: &T, cap: usize) -> Result<Vec<u8>, FrameError> {
    let before = frames.len();
    frames.extend([0; HEADER_BYTES]);
    let mut frames = postcard::to_extend(message, frames).map_err(FrameError::Unencodable)?;
    let len = frames.len() - before - HEADER_BYTES;
    match u32::try_from(len) {
        Ok(header) if len <= cap => {
            for (place, byte) in frames.iter_mut().skip(before).zip(header.to_le_bytes()) {
                *place = byte;
            }
            Ok(frames)
        }
        _ => Err(FrameError::TooLong { len, cap }),
    }
}

/// Decodes one message from one body and refuses bytes that follow it.
///
/// # Errors
/// [`FrameError::Malformed`] or [`FrameError::Trailing`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Trailing(rest.len())),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}

/// Reads one frame from a blocking channel (the worker's side).
///
/// # Errors
/// [`FrameError::Closed`] if the peer closed the channel, even within a frame. Otherwise the error
/// says what was wrong.
pub fn read_frame<T: DeserializeOwned>(channel: &mut impl Read, cap: usize) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    read_all(channel, &mut header)?;
    let mut body = vec![0; body_len(header, cap)?];
    read_all(channel, &mut body)?;
    decode(&body)
}

fn read_all(channel: &mut impl Read, buffer: &mut [u8]) -> Result<(), FrameError> {
    channel.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => FrameError::Closed,
        _ => FrameError::Io(error),
    })
}

/// Writes one frame to a blocking channel (the worker's side).
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written, or the channel's own error.
pub fn write_frame<T: Serialize>(channel: &mut impl Write, message: &T, cap: usize) -> Result<(), FrameError> {
    Ok(channel.write_all(&encode(message, cap)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::FromTenant;
    use proptest::prelude::*;

    #[test]
    fn a_length_over_the_cap_is_refused_before_the_body_is_read() {
        let error = read_frame::<u8>(&mut &[0xff, 0xff, 0xff, 0xff][..], 10).err();
        assert!(matches!(error, Some(FrameError::TooLong { cap: 10, .. })), "{error:?}");
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        assert!(matches!(decode::<bool>(&[1, 0]), Err(FrameError::Trailing(1))));
    }

    #[test]
    fn a_frame_cut_short_is_a_closed_channel() {
        assert!(matches!(read_frame::<u8>(&mut &[9, 0, 0, 0, 1][..], 10), Err(FrameError::Closed)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            drop(decode::<FromTenant>(&bytes));
            drop(read_frame::<crate::control::FromWorker>(&mut bytes.as_slice(), 1024));
        }

        #[test]
        fn appended_frames_are_read_one_after_another(first in ".{0,20}", second in ".{0,20}") {
            let frames = append(Vec::new(), &first, 100).and_then(|frames| append(frames, &second, 100));
            let frames = frames.map_err(|e| TestCaseError::fail(e.to_string()))?;
            let mut rest = frames.as_slice();
            prop_assert_eq!(read_frame::<String>(&mut rest, 100).ok(), Some(first));
            prop_assert_eq!(read_frame::<String>(&mut rest, 100).ok(), Some(second));
        }

        #[test]
        fn a_written_frame_is_read_back(text in ".{0,200}", cap in 400usize..1000) {
            let bytes = encode(&text, cap).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(read_frame::<String>(&mut bytes.as_slice(), cap).ok(), Some(text));
        }
    }
}
