//! What a box can and cannot do.

use crate::support::Site;

#[test]
fn a_program_runs_and_its_exit_code_and_output_are_kept() {
    let site = Site::new();
    let (code, log) = site.shell("hello", "echo hello from $(hostname); id -u; ls -a / ; cat /proc/net/dev; cat /proc/self/status | grep -i -E 'seccomp|nonew|cap'; exit 7");
    println!("{log}");
    assert_eq!(code, 7);
    assert!(log.contains("hello from member-1"), "{log}");
}
