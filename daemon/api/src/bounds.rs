//! Bounds of what the API takes and answers, but for those of a run (`enisle_wire`).
//!
//! The daemon imports them, and the document's sentences are compared with them.

/// Items of a page, and how many come if nobody says how many.
pub const MOST_ITEMS: usize = 100;
/// A page that has this many bytes takes no further item.
pub const PAGE_BYTES: usize = 128 << 10;
/// Bytes of a tenant's or a script's name.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of the reason that is written down with every order.
pub const MAX_REASON_BYTES: usize = 1024;
/// Bytes of a problem's `detail`; longer ones are cut.
pub const MAX_DETAIL_BYTES: usize = 2048;
/// Names of secrets in a policy.
pub const MAX_SECRETS: u32 = 100;
/// Bytes of a secret's name and of an owner.
pub const MAX_POLICY_NAME_BYTES: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of bytes as people read it.
    fn bytes(number: usize) -> String {
        match number {
            mib if mib.is_multiple_of(1 << 20) => format!("{} MiB", mib >> 20),
            kib if kib.is_multiple_of(1 << 10) && kib > 9999 => format!("{} KiB", kib >> 10),
            few => format!("{} bytes", grouped(few)),
        }
    }

    fn grouped(number: usize) -> String {
        if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
    }

    #[test]
    fn the_document_has_these_bounds() {
        for sentence in [
            format!("\"maximum\": {MOST_ITEMS},"),
            format!("A page takes no item after {} either.", bytes(PAGE_BYTES)),
            format!("[A-Za-z0-9._-]{{0,{}}}$", MAX_NAME_BYTES - 1),
            format!("Why: 1 to {}, which are written to the audit log.", bytes(MAX_REASON_BYTES)),
            format!("At most {}; of a longer explanation the beginning.", bytes(MAX_DETAIL_BYTES)),
            format!("at most {MAX_SECRETS}, of {MAX_POLICY_NAME_BYTES} bytes each"),
            format!("Whose the tenant is, in at most {MAX_POLICY_NAME_BYTES} bytes"),
            format!("\"At most {}.\"", bytes(enisle_wire::MAX_ARGS_BYTES)),
            format!("Handed over as `ctx.props`; at most {}.", bytes(enisle_wire::MAX_ARGS_BYTES)),
            format!("What the script gets as `env`; at most {}.", bytes(enisle_wire::MAX_ENV_BYTES)),
            format!(
                "At most {}, by name; a name has 1 to {} and no control characters.",
                grouped(enisle_wire::MAX_MODULES),
                bytes(enisle_wire::MAX_NAME_BYTES)
            ),
        ] {
            assert!(crate::OPENAPI.contains(&sentence), "openapi.json lacks {sentence}");
        }
    }
}
