//! libFuzzer as a library: hands it the command line and gets inputs back. The only `unsafe` of this crate.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

use byre_fuzz::Target;
// Brings the engine's object files in; its own entry points are not used.
use libfuzzer_sys as _;

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        callback: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

static TARGET: OnceLock<&'static Target> = OnceLock::new();

/// What the crate's macro would define; the driver is called with a callback instead, and never calls this.
// SAFETY: no other crate defines a symbol of this name.
#[unsafe(no_mangle)]
extern "Rust" fn rust_fuzzer_test_input(_: &[u8]) -> i32 {
    0
}

extern "C" fn one_input(data: *const u8, length: usize) -> c_int {
    let Some(target) = TARGET.get() else { return 0 };
    let input = if length == 0 {
        &[]
    } else {
        // SAFETY: libFuzzer gives `length` readable bytes that nobody changes until this returns.
        unsafe { std::slice::from_raw_parts(data, length) }
    };
    (target.run)(input);
    0
}

/// Fuzzes, or tries files, as libFuzzer's arguments say; does not return when an input fails.
pub(crate) fn run(target: &'static Target, arguments: &[&str]) -> Result<(), String> {
    TARGET.get_or_init(|| target);
    let longest = format!("-max_len={}", target.longest);
    // By its path, since libFuzzer starts it again to merge corpora.
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let program = program.to_str().ok_or_else(|| "this program's path is no Unicode".to_owned())?;
    let words = [program, longest.as_str()].into_iter().chain(arguments.iter().copied());
    let owned: Vec<CString> = words
        .map(|word| CString::new(word).map_err(|_| "an argument has a NUL byte".to_owned()))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<*mut c_char> = owned.iter().map(|word| word.as_ptr().cast_mut()).collect();
    let mut count = c_int::try_from(pointers.len()).map_err(|_| "too many arguments".to_owned())?;
    pointers.push(std::ptr::null_mut());
    let mut list = pointers.as_mut_ptr();
    // SAFETY: `list` has `count` strings and a null pointer behind them; all of them outlive the call, and the driver only reads them.
    let code = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut list, one_input) };
    if code == 0 { Ok(()) } else { Err(format!("libFuzzer ended with {code}")) }
}
