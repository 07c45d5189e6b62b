//! The rows about the sandbox of workers.
//!
//! Part of [`SETTINGS`](super::SETTINGS).

use super::super::sandbox::{ACCOUNT, SANDBOX as CHOICES};
use super::super::value::Grammar as _;
use super::category::Category;
use super::setting::{Binding, Setting};

pub(super) const SANDBOX: Setting = Setting {
    binding: bind!(sandbox, CHOICES),
    category: Category::Operation,
    value_name: "HOW",
    default: "auto",
    example: "required",
    help: "Sandbox workers",
    long_help: "No new privileges, no capabilities, no core dumps, no files, no new sockets, and \
                only the system calls that serving needs; the same for the admin process. auto: as \
                much as the kernel supports; status shows the layers in force. required: a worker \
                that lacks a layer does not start.",
};

pub(super) const USER: Setting = Setting {
    binding: bind!(user, ACCOUNT),
    category: Category::Operation,
    value_name: "NAME",
    default: "unchanged",
    example: "nobody",
    help: "User to run workers as",
    long_help: "Requires root. The supervisor stays root: it binds, forks and signals. Workers \
                also drop all supplementary groups. The admin process does the same.",
};

pub(super) const GROUP: Setting = Setting {
    binding: bind!(group, ACCOUNT),
    category: Category::Operation,
    value_name: "NAME",
    default: "unchanged",
    example: "nogroup",
    help: "Group to run workers as",
    long_help: "unchanged: the primary group of user, if that is set.",
};
