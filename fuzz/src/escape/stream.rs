//! Reads the daemon's events from the answer to a follower.

use std::io::{self, BufRead, Read};

use serde_json::Value;

/// Calls `enter` with every line of a chunked answer, until the stream ends.
pub(super) fn events(stream: &mut impl BufRead, mut enter: impl FnMut(&Value)) -> io::Result<()> {
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let mut text = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Ok(size) = u64::from_str_radix(line.trim(), 16) else { return Ok(()) };
        stream.take(size).read_to_end(&mut text)?;
        stream.read_line(&mut line)?;
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let event: Vec<_> = text.drain(..=end).collect();
            if let Ok(event) = serde_json::from_slice(&event) {
                enter(&event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_read_across_chunks() {
        let mut stream = &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n5\r\n1}\n{}\r\n1\r\n\n\r\n0\r\n\r\n"[..];
        let mut seen = Vec::new();
        events(&mut stream, |event| seen.push(event.clone())).unwrap();
        assert_eq!(seen, [json!({ "a": 1 }), json!({})]);
    }
}
