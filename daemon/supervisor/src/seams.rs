//! What the fuzzer (`fuzz/`) calls: the parts of the daemon that read what others write, one
//! function each. No release has it.

/// Reads a configuration file's text.
///
/// # Errors
/// What `enisled --check-config` would report.
pub fn config(text: &str) -> Result<(), String> {
    toml::from_str::<crate::config::Config>(text).map(drop).map_err(|error| error.to_string())
}
