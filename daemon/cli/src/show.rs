//! Answers for people, and the same for machines. Text of a tenant's is escaped: it must not drive the terminal.

use serde_json::Value;

pub(crate) fn value(value: &Value, as_json: bool) {
    if as_json {
        outln!("{value}");
    } else {
        outln!("{}", safe(&serde_json::to_string_pretty(value).unwrap_or_default()));
    }
}

/// `text` without control characters but line ends and tabs.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A run: its console on standard error, its result on standard output.
pub(crate) fn answer(answer: &Value, as_json: bool) {
    if as_json {
        outln!("{answer}");
        return;
    }
    for line in answer["logs"].as_array().into_iter().flatten() {
        let level = line["level"].as_str().unwrap_or("log");
        let text = safe(line["text"].as_str().unwrap_or_default());
        eprintln!("{}{text}", if level == "log" { String::new() } else { format!("[{level}] ") });
    }
    if answer["truncated"] == true {
        eprintln!("(the log was cut: limits.logBytes, limits.logLines)");
    }
    if let Some(error) = answer.get("error") {
        let stack = error["stack"].as_str().unwrap_or_default();
        let line = format!(
            "{}: {}",
            error["name"].as_str().unwrap_or_default(),
            error["message"].as_str().unwrap_or_default()
        );
        eprintln!(
            "{}: {}",
            answer["outcome"].as_str().unwrap_or_default(),
            safe(if stack.is_empty() { &line } else { stack })
        );
    }
    if let Some(result) = answer.get("result") {
        value(result, false);
    }
}

pub(crate) fn workers(workers: &Value, as_json: bool) {
    if as_json {
        outln!("{workers}");
        return;
    }
    outln!("{:>4} {:>8} {:<7} {:>9} {:>7}  TENANTS", "ID", "PID", "CORDON", "RSS MiB", "AGE s");
    for worker in workers.as_array().into_iter().flatten() {
        let number = |key: &str| worker[key].as_u64().unwrap_or_default();
        let tenants: Vec<_> = worker["tenants"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (rss, age) = (number("rssBytes") >> 20, number("ageMs") / 1000);
        let cordon = worker["cordon"].as_str().unwrap_or_default();
        outln!("{:>4} {:>8} {cordon:<7} {rss:>9} {age:>7}  {}", number("id"), number("pid"), tenants.join(" "));
    }
}

pub(crate) fn tenants(tenants: &Value, as_json: bool) {
    if as_json {
        outln!("{tenants}");
        return;
    }
    outln!("{:<32} {:<8} {:>6} {:>9} {:>9} {:>12}", "TENANT", "CORDON", "SCORE", "IN FLIGHT", "RUNS", "CPU ms");
    for tenant in tenants.as_array().into_iter().flatten() {
        let text = |value: &Value| safe(value.as_str().unwrap_or_default());
        let (cordon, usage) = (&tenant["cordon"], &tenant["usage"]);
        outln!(
            "{:<32} {:<8} {:>6} {:>9} {:>9} {:>12}",
            text(&tenant["name"]),
            text(&cordon["level"]),
            cordon["score"].to_string(),
            tenant["inFlight"].to_string(),
            usage["runs"].to_string(),
            usage["cpuMs"].to_string(),
        );
    }
}

/// One line of the events: the JSON itself, or its parts in a row.
pub(crate) fn event(line: &str, as_json: bool) {
    let Ok(Value::Object(mut event)) = serde_json::from_str(line) else {
        outln!("{}", safe(line));
        return;
    };
    if as_json {
        outln!("{line}");
        return;
    }
    let seq = event.remove("seq").unwrap_or_default();
    event.remove("unixMs");
    let name = event.remove("event").unwrap_or_default();
    let parts: Vec<_> = event
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    outln!("{seq:>6} {:<18} {}", name.as_str().unwrap_or_default(), safe(&parts.join(" ")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_cannot_drive_the_terminal() {
        assert_eq!(safe("a\u{1b}[31mb\n\u{7}"), "a\\u{1b}[31mb\n\\u{7}");
    }
}
