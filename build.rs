//! Asks the linker for relative relocations in their short form: a third of a megabyte less to load. glibc reads them since 2.36, which
//! Debian 12 has; a program built for an older one does not start there, and says so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
