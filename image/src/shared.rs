//! A store that several threads use: changes one after the other, looks at any time, layers made beside both.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::policy::Policy;
use crate::pull::Works;
use crate::store::{Catalog, Limits, Maker, Recovery, Store, StoreError};

/// An open store, shared.
#[derive(Debug)]
pub struct SharedStore {
    store: Mutex<Store>,
    catalog: RwLock<Arc<Catalog>>,
    maker: Maker,
    policy: Arc<Policy>,
    works: Works,
}

impl SharedStore {
    /// Opens the store, see [`Store::open`].
    ///
    /// # Errors
    /// Of [`Store::open`].
    pub fn open(root: &Path, limits: Limits) -> Result<(Self, Recovery), StoreError> {
        Self::open_with(root, limits, Policy::default())
    }

    /// As [`SharedStore::open`], with rules for what may be pulled, loaded and run.
    ///
    /// # Errors
    /// Of [`Store::open`].
    pub fn open_with(root: &Path, limits: Limits, policy: Policy) -> Result<(Self, Recovery), StoreError> {
        let (mut store, recovery) = Store::open(root, limits)?;
        store.set_policy(policy);
        let policy = Arc::clone(store.policy());
        let (catalog, maker) = (RwLock::new(Arc::new(store.catalog())), store.maker());
        Ok((Self { store: Mutex::new(store), catalog, maker, policy, works: Works::default() }, recovery))
    }

    /// What is in the store.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the store; whatever came of it, the catalog then says what is there.
    ///
    /// # Errors
    /// Of the change.
    pub fn change<T>(&self, what: impl FnOnce(&mut Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut store: MutexGuard<'_, Store> = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let result = what(&mut store);
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(store.catalog());
        result
    }

    /// Whether a change is under way now.
    pub fn is_changing(&self) -> bool {
        self.store.try_lock().is_err()
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn maker(&self) -> &Maker {
        &self.maker
    }

    pub(crate) fn works(&self) -> &Works {
        &self.works
    }
}
