//! `enisle doctor`: the posture of this machine, in one to four lines per layer, and the posture of
//! the running daemon.

use std::path::Path;

use enisle_api::client::{Client, ClientError};
use enisle_api::types::about::Info;
use enisle_hardening::Posture;
use serde_json::{Value, json};

use crate::{advice, show};

pub(crate) async fn examine(client: &Client, as_json: bool) {
    let posture = Posture::probe();
    let answer = client.get("/v1/info").await;
    if as_json {
        let daemon = answer.and_then(|answer| answer.read::<Value>()).ok();
        show::out(&as_value(&posture, daemon).to_string());
        return;
    }
    for finding in &posture.findings {
        let state = if finding.on { "on " } else { "OFF" };
        outln!("{state}  {:<18} against {}", finding.layer.name(), finding.layer.protects());
        if !finding.detail.is_empty() {
            outln!("     {:<18} found: {}", "", finding.detail);
        }
        if !finding.on {
            outln!("     {:<18} so: {}", "", finding.layer.without());
            outln!("     {:<18} to get it: {}", "", finding.layer.remedy());
        }
    }
    for note in &posture.notes {
        outln!("note {note}");
    }
    for line in daemon(client.socket(), answer.and_then(|answer| answer.read::<Info>())) {
        outln!("{line}");
    }
}

/// What the daemon reports about itself, or why it reports nothing. The daemon may be configured to
/// do without a layer that the machine has, or may see less of the machine than this program does.
fn daemon(socket: &Path, answer: Result<Info, ClientError>) -> Vec<String> {
    let info = match answer {
        Ok(info) => info,
        Err(why) => return vec![advice(&why)],
    };
    let hidden = "only operators see which layers its workers lack ([[peers]] operate = true)";
    let consequence = info.posture.as_ref().map_or(hidden, |posture| &posture.consequence);
    let mut lines = vec![format!("daemon on {}: {consequence}", socket.display())];
    for layer in info.posture.iter().flat_map(|posture| &posture.layers).filter(|layer| !layer.on) {
        let consequence = layer.consequence.as_deref().unwrap_or("?");
        lines.push(format!("its workers lack {}: {consequence}", layer.layer));
    }
    lines
}

fn as_value(posture: &Posture, daemon: Option<Value>) -> Value {
    let layers: Vec<_> = posture
        .findings
        .iter()
        .map(|finding| {
            json!({ "layer": finding.layer.name(), "on": finding.on, "detail": finding.detail,
                "consequence": (!finding.on).then(|| finding.layer.without()) })
        })
        .collect();
    json!({ "layers": layers, "keys": posture.keys, "notes": posture.notes, "daemon": daemon })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_refuses_is_not_reported_as_missing() {
        let socket = Path::new("/run/enisled.sock");
        let refused = ClientError::Problem { status: 403, detail: "uid 7 may not ask".to_owned() };
        assert_eq!(daemon(socket, Err(refused)), ["the daemon says 403: uid 7 may not ask"]);
        let unreadable = ClientError::BadAnswer("not JSON".to_owned());
        assert_eq!(daemon(socket, Err(unreadable)), ["the daemon's answer cannot be read: not JSON"]);
    }

    #[test]
    fn a_missing_daemon_is_reported_with_what_to_do() {
        let error = std::io::ErrorKind::NotFound.into();
        let missing = ClientError::Unreachable { socket: "/run/enisled.sock".to_owned(), error };
        let lines = daemon(Path::new("/run/enisled.sock"), Err(missing));
        assert!(lines[0].starts_with("no daemon answers on /run/enisled.sock"), "{lines:?}");
        assert!(lines[0].contains("start one with `enisled`"), "{lines:?}");
    }
}
