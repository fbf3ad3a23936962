//! `enisle doctor`: the posture of this machine, in one to four lines per layer, and that of the
//! running daemon.

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
    match answer.and_then(|answer| answer.read::<Info>()) {
        Ok(info) => daemon(&info, client),
        Err(why @ ClientError::Stranger { .. }) => outln!("{}", advice(&why)),
        Err(_) => outln!("no daemon answers on {}", client.socket().display()),
    }
}

/// What the daemon reports about itself. The daemon may be configured to do without a layer that
/// the machine has, or may see less of the machine than this program does.
fn daemon(info: &Info, client: &Client) {
    let hidden = "only operators see which layers its workers lack ([[peers]] operate = true)";
    let consequence = info.posture.as_ref().map_or(hidden, |posture| &posture.consequence);
    outln!("daemon on {}: {consequence}", client.socket().display());
    for layer in info.posture.iter().flat_map(|posture| &posture.layers).filter(|layer| !layer.on) {
        outln!("its workers lack {}: {}", layer.layer, layer.consequence.as_deref().unwrap_or("?"));
    }
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
