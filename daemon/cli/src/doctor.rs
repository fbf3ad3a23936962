//! `enisle doctor`: the posture of this machine, a line a layer, and what the running daemon makes of it.

use enisle_hardening::Posture;
use serde_json::{Value, json};

use crate::client::{Client, ClientError};
use crate::show;

pub(crate) async fn examine(client: &Client, as_json: bool) {
    let posture = Posture::probe();
    let (daemon, why) = match client.get("/v1/info").await.and_then(|info| info.value()) {
        Ok(info) => (Some(info), None),
        Err(error) => (None, Some(error)),
    };
    if as_json {
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
    match daemon {
        Some(info) => {
            let hidden = "what its workers are without is for operators ([[peers]] operate = true)";
            let consequence = info["posture"]["consequence"].as_str().unwrap_or(hidden);
            outln!("daemon on {}: {consequence}", client.socket.display());
            // The daemon may do without what the machine has, or see less of it than we do.
            for layer in info["posture"]["layers"].as_array().into_iter().flatten().filter(|layer| layer["on"] == false)
            {
                let text = |key: &str| layer[key].as_str().unwrap_or("?");
                outln!("its workers are without {}: {}", text("layer"), text("consequence"));
            }
        }
        None => match why {
            Some(why @ ClientError::Stranger { .. }) => outln!("{why}"),
            _ => outln!("no daemon answers on {}", client.socket.display()),
        },
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
