//! What processes ask of the kernel, by the names of `--ops`.

use std::fmt;

use super::Invalid;

/// An operation. Which hooks of which mechanism it is, the table in [`kernel::hook`](crate::kernel::hook) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Op {
    Open,
    Read,
    Write,
    Mmap,
    Create,
    Mknod,
    Unlink,
    Rename,
    Mkdir,
    Rmdir,
    Link,
    Symlink,
    Readlink,
    Truncate,
    Stat,
    Readdir,
    Xattr,
    Chmod,
    Chown,
    Lock,
    Ioctl,
    Exec,
    Fsync,
    /// `socket(2)`.
    Socket,
    Bind,
    Listen,
    Accept,
    Connect,
    Sendmsg,
    Recvmsg,
    /// Memory by `mmap(2)`.
    Map,
    /// Memory by `brk(2)`.
    Brk,
    /// A new open file, of whatever kind.
    Fd,
    /// A new process or thread.
    Fork,
}

impl Op {
    /// What is done to files.
    pub const OF_FILES: [Self; 23] = [
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Mmap,
        Self::Create,
        Self::Mknod,
        Self::Unlink,
        Self::Rename,
        Self::Mkdir,
        Self::Rmdir,
        Self::Link,
        Self::Symlink,
        Self::Readlink,
        Self::Truncate,
        Self::Stat,
        Self::Readdir,
        Self::Xattr,
        Self::Chmod,
        Self::Chown,
        Self::Lock,
        Self::Ioctl,
        Self::Exec,
        Self::Fsync,
    ];

    /// What is done to sockets.
    pub const OF_SOCKETS: [Self; 7] =
        [Self::Socket, Self::Bind, Self::Listen, Self::Accept, Self::Connect, Self::Sendmsg, Self::Recvmsg];

    /// By what memory is got.
    pub const OF_MEMORY: [Self; 2] = [Self::Map, Self::Brk];

    /// What makes a file or a directory larger; of writes only those do that go beyond its end.
    pub const GROWING: [Self; 6] =
        [Self::Write, Self::Create, Self::Mknod, Self::Mkdir, Self::Link, Self::Symlink];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Mmap | Self::Map => "mmap",
            Self::Create => "create",
            Self::Mknod => "mknod",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Link => "link",
            Self::Symlink => "symlink",
            Self::Readlink => "readlink",
            Self::Truncate => "truncate",
            Self::Stat => "stat",
            Self::Readdir => "readdir",
            Self::Xattr => "xattr",
            Self::Chmod => "chmod",
            Self::Chown => "chown",
            Self::Lock => "lock",
            Self::Ioctl => "ioctl",
            Self::Exec => "exec",
            Self::Fsync => "fsync",
            Self::Socket => "socket",
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
            Self::Recvmsg => "recvmsg",
            Self::Brk => "brk",
            Self::Fd => "fd",
            Self::Fork => "fork",
        }
    }

    /// Whether it is done to a file that is open, or is being opened.
    #[must_use]
    pub fn is_of_open_files(self) -> bool {
        use Op::{Exec, Fsync, Ioctl, Lock, Mmap, Open, Read, Readdir, Write};
        matches!(self, Open | Read | Write | Mmap | Readdir | Lock | Ioctl | Exec | Fsync)
    }

    /// The one of these that is meant.
    ///
    /// # Errors
    ///
    /// [`Invalid`], with the nearest of them.
    pub fn among(all: &[Self], text: &str) -> Result<Self, Invalid> {
        // Of sockets alone, `create` can only be one.
        let found = all.iter().find(|op| op.name() == text);
        let socket = all.iter().find(|op| **op == Self::Socket && text == "create");
        found.or(socket).copied().ok_or_else(|| {
            let names = all.iter().map(|op| op.name());
            unknown("operation", text, names.clone(), &names.collect::<Vec<_>>().join(", "))
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is said of a name that nothing has: those that are most like it, or else `all`.
pub(super) fn unknown<'a>(
    what: &str,
    text: &str,
    names: impl Iterator<Item = &'a str>,
    all: &str,
) -> Invalid {
    // One slip in a short name, and more in a longer one: a letter too many, missing, wrong, or before the one it comes after.
    let slips = 1 + text.len() / 4;
    let mut near: Vec<_> = names
        .map(|name| (strsim::osa_distance(&text.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= slips.min(name.len() / 2))
        .collect();
    near.sort_unstable();
    let near: Vec<_> = near.into_iter().take(3).map(|(_, name)| name).collect();
    Invalid::new(match &near[..] {
        [] => format!("'{text}' is no {what}; there are {all}"),
        near => format!("'{text}' is no {what}; is {} meant?", near.join(" or ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_near_ones_suggested() {
        for op in Op::OF_FILES {
            assert_eq!(Op::among(&Op::OF_FILES, op.name()), Ok(op));
        }
        assert_eq!(Op::among(&Op::OF_SOCKETS, "create"), Ok(Op::Socket));
        let said = |text: &str| Op::among(&Op::OF_FILES, text).expect_err(text).to_string();
        assert!(said("raed").contains("read"), "{}", said("raed"));
        assert!(said("unlnk").contains("unlink"));
        assert!(said("zzz").contains("open, read, write"));
        let said = crate::spec::parse_errno("EOI").expect_err("EOI").to_string();
        assert_eq!(said, "'EOI' is no errno; is EIO meant?");
    }
}
