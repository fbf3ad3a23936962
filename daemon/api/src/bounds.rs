//! Bounds of requests and answers, except the bounds of a run, which are in `enisle_wire`.
//!
//! The daemon imports these bounds. A test compares the OpenAPI document's sentences with them.

/// The most items of a page, and the default.
pub const MOST_ITEMS: usize = 100;
/// A page that has this many bytes takes no further item.
pub const PAGE_BYTES: usize = 128 << 10;
/// Bytes of a tenant's or a script's name.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of the reason that is recorded with every order.
pub const MAX_REASON_BYTES: usize = 1024;
/// Bytes of a problem's `detail`. A longer one is truncated.
pub const MAX_DETAIL_BYTES: usize = 2048;
/// Names of secrets in a policy.
pub const MAX_SECRETS: u32 = 100;
/// Bytes of a secret's name and of an owner.
pub const MAX_POLICY_NAME_BYTES: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of bytes in the largest unit that divides it.
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
            format!("A page also ends once it has {}.", bytes(PAGE_BYTES)),
            format!("[A-Za-z0-9._-]{{0,{}}}$", MAX_NAME_BYTES - 1),
            format!("The reason, 1 to {}; it is written to the audit log.", bytes(MAX_REASON_BYTES)),
            format!("At most {}; a longer explanation is truncated.", bytes(MAX_DETAIL_BYTES)),
            format!("at most {MAX_SECRETS}, each of at most {MAX_POLICY_NAME_BYTES} bytes"),
            format!("The tenant's owner, at most {MAX_POLICY_NAME_BYTES} bytes"),
            format!("\"At most {}.\"", bytes(enisle_wire::MAX_ARGS_BYTES)),
            format!("Passed to the script as `ctx.props`; at most {}.", bytes(enisle_wire::MAX_ARGS_BYTES)),
            format!("The script's `env`; at most {}.", bytes(enisle_wire::MAX_ENV_BYTES)),
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
