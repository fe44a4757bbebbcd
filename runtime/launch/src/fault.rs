//! Fault points: the places of a launch child where this crate's own tests let it die.
//!
//! Every named step is one, and so is each `fault_point!` that stands where a stage begins or where no step is named. They exist only
//! with the feature `fault-points`, which nothing but this crate's tests turns on: in a shipped PID 1 the macro is empty. What happens at a
//! point is the test's business; nothing here panics.

/// A place where a test may let the launch child die. Empty without the feature `fault-points`.
macro_rules! fault_point {
    () => {
        #[cfg(feature = "fault-points")]
        $crate::fault::reached(std::panic::Location::caller());
    };
}

#[cfg(feature = "fault-points")]
static OBSERVER: std::sync::OnceLock<fn(&'static std::panic::Location<'static>)> = std::sync::OnceLock::new();

/// Calls `observer` with the place of every fault point that a launch child of this process reaches, in that child. The first call counts.
#[cfg(feature = "fault-points")]
pub fn observe_faults(observer: fn(&'static std::panic::Location<'static>)) {
    let _ = OBSERVER.set(observer);
}

#[cfg(feature = "fault-points")]
pub(crate) fn reached(place: &'static std::panic::Location<'static>) {
    if let Some(observer) = OBSERVER.get() {
        observer(place);
    }
}
