//! Listens where a daemon would, prints `listening`, and prints everything that one client sends.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_default();
    let listener = UnixListener::bind(path)?;
    let mut out = std::io::stdout();
    out.write_all(b"listening\n")?;
    out.flush()?;
    let (mut client, mut sent) = (listener.accept()?.0, [0; 4096]);
    loop {
        let got = client.read(&mut sent)?;
        if got == 0 {
            return Ok(());
        }
        out.write_all(sent.get(..got).unwrap_or_default())?;
        out.flush()?;
    }
}
