//! Live handover: established connections move from one worker to another.
//!
//! The two workers are connected by a socket pair of their own (`SOCK_SEQPACKET`, carries
//! descriptors). The one that leaves sends its connections in batches between the turns of its
//! loop, the other takes each batch in between its own turns and acknowledges it; both go on
//! serving meanwhile.
//!
//! ```text
//!   sender                                          receiver
//!   freeze a batch: unwatch, mark as moving
//!   batch 1 (records + descriptors)  ------------>  record all or none, watch
//!                                    <------------  acknowledged 1; now it serves them
//!   close its descriptors, forget them
//!   ...
//!   end                              ------------>
//! ```
//!
//! What a connection is outside of the kernel travels in a record; what is inside (unread input,
//! output not delivered, an end of stream) travels with the descriptor. The sender keeps its own
//! descriptor, untouched, until the acknowledgement, so a batch that is refused, or whose receiver
//! dies, is back at once: a failure never closes a connection.
//!
//! [`record`] is the format, [`machine`] the rules of both sides; `reactor::moving` carries them
//! out. All here is pure.

pub mod machine;
pub mod record;
