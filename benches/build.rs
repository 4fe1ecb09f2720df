//! Compiles what calls Berkeley DB, if that was asked for.

fn main() {
    println!("cargo:rerun-if-changed=src/bdb.c");
    #[cfg(feature = "bdb")]
    {
        cc::Build::new().file("src/bdb.c").warnings(true).compile("bench_bdb");
        println!("cargo:rustc-link-lib=db-5.3");
    }
}
