//! The system calls that customer code may not make, as two BPF programs for bubblewrap.
//!
//! Always holds: everything else is allowed, so ordinary programs work; what is denied gives `EPERM`,
//! except `clone3` and the x32 calls, which give `ENOSYS` so that the C library falls back to calls
//! whose flags a filter can read; a foreign architecture is killed.

use std::{collections::BTreeMap, fs::File, io::Write as _, os::fd::OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Cmp, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, sock_filter,
};

use crate::error::{During, Error, Result};

/// Denied whatever the arguments.
const DENIED: &[i64] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Parts of the kernel that a program does not need and that have had many holes.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_memfd_secret,
    libc::SYS_quotactl_fd,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_syslog,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
];

/// The programs as descriptors that bubblewrap reads at its start.
pub(crate) fn filters() -> Result<Vec<OwnedFd>> {
    [denials().map_err(|error| unsupported(&error))?, vanished_calls()].iter().map(to_memfd).collect()
}

fn unsupported(error: &seccompiler::BackendError) -> Error {
    Error::Missing {
        code: "seccomp_unsupported",
        what: format!("no system call filter can be built for this processor ({error})"),
        remedy: "use a machine with an x86-64 or arm64 processor".into(),
    }
}

fn denials() -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<Rule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, new_namespaces()?);
    rules.insert(libc::SYS_socket, sockets()?);
    rules.insert(libc::SYS_ioctl, terminal_injection()?);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

type Rules = std::result::Result<Vec<Rule>, seccompiler::BackendError>;

/// `clone` with any flag that makes a namespace.
fn new_namespaces() -> Rules {
    [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ]
    .into_iter()
    .map(|flag| {
        let flag = u64::from(flag.cast_unsigned());
        Rule::new(vec![Condition::new(0, Len::Dword, Cmp::MaskedEq(flag), flag)?])
    })
    .collect()
}

/// Sockets of other families than unix, IP and netlink, raw IP sockets, and netlink for anything but
/// asking for addresses and routes.
fn sockets() -> Rules {
    let family_is_not =
        |family: i32| Condition::new(0, Len::Dword, Cmp::Ne, u64::from(family.cast_unsigned()));
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let raw = u64::from(libc::SOCK_RAW.cast_unsigned());
    Ok(vec![
        Rule::new(families.into_iter().map(family_is_not).collect::<std::result::Result<_, _>>()?)?,
        Rule::new(vec![
            Condition::new(1, Len::Dword, Cmp::MaskedEq(0xf), raw)?,
            family_is_not(libc::AF_NETLINK)?,
        ])?,
        Rule::new(vec![
            Condition::new(0, Len::Dword, Cmp::Eq, u64::from(libc::AF_NETLINK.cast_unsigned()))?,
            Condition::new(2, Len::Dword, Cmp::Ne, u64::from(libc::NETLINK_ROUTE.cast_unsigned()))?,
        ])?,
    ])
}

/// Typing into a terminal on behalf of its reader.
fn terminal_injection() -> Rules {
    [libc::TIOCSTI, libc::TIOCLINUX]
        .into_iter()
        .map(|request| Rule::new(vec![Condition::new(1, Len::Dword, Cmp::Eq, request)?]))
        .collect()
}

/// `clone3` and, on x86-64, every x32 call: `ENOSYS`.
fn vanished_calls() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32_BIT: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let no_such_call = u32::from(SeccompAction::Errno(libc::ENOSYS.cast_unsigned()));
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_GREATER_OR_EQUAL, 2, 0, X32_BIT),
        step(JUMP_EQUAL, 1, 0, clone3),
        step(RETURN, 0, 0, u32::from(SeccompAction::Allow)),
        step(RETURN, 0, 0, no_such_call),
    ]
}

fn to_memfd(program: &BpfProgram) -> Result<OwnedFd> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for step in program {
        bytes.extend(step.code.to_ne_bytes());
        bytes.extend([step.jt, step.jf]);
        bytes.extend(step.k.to_ne_bytes());
    }
    memfd("ionet-seccomp", &bytes)
}

/// A descriptor that reads as `bytes` from its start.
pub(crate) fn memfd(name: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).during("make a memory file")?);
    file.write_all(bytes).during("fill a memory file")?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).during("rewind a memory file")?;
    Ok(file.into())
}
