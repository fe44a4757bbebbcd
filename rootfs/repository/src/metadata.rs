//! Root metadata of the keys that are there, and signatures of several of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use byre_release::SigningKey;
use byre_tuf::{Key, RoleKeys, Root, SPEC_VERSION, key_id};
use serde::Serialize;

use crate::keys::Role;

/// A file of this metadata, signed with all of these keys.
///
/// # Errors
/// When it cannot be put into canonical form.
pub fn sign<'a>(signed: &impl Serialize, keys: impl IntoIterator<Item = &'a SigningKey>) -> Result<Vec<u8>> {
    byre_tuf::sign(signed, keys.into_iter().map(SigningKey::ed25519)).context("the metadata has no canonical form")
}

/// Root metadata of these keys and thresholds, not signed yet.
///
/// # Errors
/// When a role has fewer keys than its threshold.
pub fn new_root(version: u64, expires: String, keys: &[(Role, &[SigningKey], u64)]) -> Result<Root> {
    let (mut all, mut roles) = (BTreeMap::new(), BTreeMap::new());
    for (role, keys, threshold) in keys {
        let tuf_role = role.of_tuf().context("release keys are not TUF's")?;
        let enough = *threshold > 0 && u64::try_from(keys.len())? >= *threshold;
        ensure!(enough, "{} has {} keys, its threshold is {threshold}", role.name(), keys.len());
        let public = keys.iter().map(|key| Key::ed25519(&key.public_bytes()));
        let named: Vec<_> = public.map(|key| (key_id(&key), key)).collect();
        let keyids = named.iter().map(|(id, _)| id.clone()).collect();
        all.extend(named);
        roles.insert(tuf_role, RoleKeys { keyids, threshold: *threshold, extra: BTreeMap::new() });
    }
    Ok(Root {
        kind: byre_tuf::Role::Root,
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version,
        expires,
        keys: all,
        roles,
        extra: BTreeMap::new(),
    })
}
