//! What of a ruleset the kernel holds.

use egressguard::ruleset::Ruleset;
use egressguard::ruleset::program::KeyType;

use super::{Case, NOW};

/// The rules of a case as the kernel holds them at [`NOW`]: none about users that are not known, no pins whose time has come.
pub fn held(case: &Case) -> Ruleset {
    let mut held = case.compile().loadable();
    for set in held.sets.values_mut() {
        set.members.retain(|_, member| member.expires.is_none_or(|expires| expires > NOW));
    }
    held
}

/// The same without control groups, which nft takes by their path only.
pub fn without_control_groups(mut ruleset: Ruleset) -> Ruleset {
    for set in ruleset.sets.values_mut().filter(|set| set.def.key == [KeyType::CgroupV2]) {
        set.members.clear();
    }
    ruleset
}
