//! Landlock with every right handled and none granted: a second layer in case the filter has a
//! hole.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope,
};

use super::JailError;

/// The newest version of Landlock's interface that this code uses. Older kernels enforce what they
/// support, and the posture reports their version.
const NEWEST: ABI = ABI::V6;

pub(super) fn grant_nothing(set_no_new_privs: bool) -> Result<(), JailError> {
    let explain = |error: landlock::RulesetError| JailError::Landlock(error.to_string());
    // `set_no_new_privs` is deprecated in favour of a method that 0.4.7 does not export yet.
    #[expect(deprecated, reason = "its replacement is private in this version of the crate")]
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(landlock::Ruleset::create)
        .and_then(|ruleset| ruleset.set_no_new_privs(set_no_new_privs).restrict_self())
        .map_err(explain)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(JailError::Landlock("the kernel enforces none of it".to_owned())),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}
