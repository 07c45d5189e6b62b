//! Every event that this program logs, declared once: key, level, message, fields and meaning.
//!
//! `event!` writes one. The key is the stable name (`event=worker_died` in the log): messages may
//! be reworded, keys may not. `docs/reference.md` has the same table.

use tracing::Level;

/// The declaration of a log event.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// The stable name, the value of the field `event`.
    pub key: &'static str,
    /// The severity.
    pub level: Level,
    /// The message, of at most six words.
    pub message: &'static str,
    /// The names of its possible fields.
    pub fields: &'static [&'static str],
    /// When it is logged, and the recommended action.
    pub meaning: &'static str,
}

/// Declares constants of [`Declared`], named like their keys, and a list of them by section.
macro_rules! events {
    ($($section:literal { $($key:ident: $level:ident $message:literal [$($field:ident),*]
        $meaning:literal;)+ })+) => {
        $($(
            #[allow(non_upper_case_globals, reason = "an event is written as its key is logged")]
            #[doc = $meaning]
            pub const $key: Declared = Declared {
                key: stringify!($key),
                level: Level::$level,
                message: $message,
                fields: &[$(stringify!($field)),*],
                meaning: $meaning,
            };
        )+)+

        /// Every event, in sections.
        pub const SECTIONS: &[(&str, &[Declared])] = &[$(($section, &[$($key),+])),+];
    };
}

events! {
    "The server" {
        server_starting: INFO "server starting" [workers, pid, version]
            "The configuration is valid; the first worker is about to start.";
        config_part_ignored: INFO "configuration part ignored" [variables, address, host]
            "A variable that Kubernetes set for a service of a similar name, or an IPv6 address of a name on a machine without IPv6.";
        ipv6_unavailable: WARN "ipv6 unavailable, listening on ipv4" [address]
            "`*:PORT` on a system without IPv6; `status` shows the address in force.";
        backlog_limited: WARN "accept queue limited by net.core.somaxconn" [asked, granted]
            "`backlog` asks for more than the kernel grants; raise the sysctl.";
        server_start_failed: ERROR "server start failed" [error]
            "With `log_format = \"json\"`, the error message of a failed start.";
        boot_failed: DEBUG "boot failed" [error]
            "Why the boot failed; the error message follows.";
        server_ready: INFO "server ready" [address, workers, pid, version]
            "Every slot serves; with `boot = \"any\"`, the first one does and the others have been tried.";
        slot_without_worker: ERROR "slot has no worker" [slot, error]
            "A worker could not start at boot; with `boot = \"any\"` the other slots serve and it is tried again.";
        orphan_adopted: INFO "worker adopted" [slot, generation, worker_pid, connections]
            "The server has started and goes on with a worker whose supervisor had died; a reload replaces it next.";
        stored_config_used: WARN "configuration invalid, previous one used" [error]
            "The server has started with an invalid configuration and adopted workers: it continues with theirs; correct it and reload.";
        config_not_stored: WARN "configuration not stored" [error]
            "If the supervisor dies, a start with an invalid configuration does not adopt its workers.";
        orphan_not_adopted: INFO "worker not adopted" [path, error]
            "A worker in the directory of this server is not adopted: its supervisor runs, it is about to exit, or it does not answer.";
        orphan_not_reached: WARN "worker not reached" [path, error]
            "The rendezvous of a worker that may have no supervisor cannot be connected.";
        orphan_of_other_user: WARN "rendezvous of another user" [path, client_uid]
            "Its worker is not adopted.";
        orphan_incompatible: WARN "worker incompatible" [error]
            "A worker without supervisor uses another version of the messages; it is stopped.";
        orphan_ended: INFO "orphan told to stop" [worker_pid]
            "A worker without supervisor is in the way: `adopt = false`, other addresses, another version, or a third one in its slot.";
        orphan_not_ended: WARN "orphan not told to stop" [worker_pid, error]
            "The same, and it could not be signalled; it stops after its `orphan_timeout`.";
        rendezvous_unavailable: WARN "workers cannot be adopted" [path, error]
            "No private directory beside the control socket: if the supervisor dies, its workers stop after `orphan_timeout`.";
        rendezvous_not_bound: WARN "worker cannot be adopted" [slot, generation, error]
            "The worker has no rendezvous: if the supervisor dies, it stops after `orphan_timeout`.";
        server_resumed: INFO "server resumed" [pid, version, upgraded]
            "The first line after an in-place upgrade; `upgraded=false` if the old program runs again.";
        signal_ignored: WARN "signal ignored" [signal]
            "The signal has no effect.";
        terminal_closed: INFO "terminal closed, serving on" []
            "The server was started with `SIGHUP` ignored (`nohup`).";
        service_job_unknown: WARN "service job unknown, stopping" [error]
            "systemd did not say whether it stops or restarts the service; the workers drain.";
        server_leaving: INFO "server leaving its workers" [reason, workers, connections]
            "systemd restarts the service: the workers serve on, and the next supervisor adopts them.";
        server_stopping: INFO "server stopping" [reason, timeout_ms]
            "A graceful stop begins; workers still running after `timeout_ms` are killed.";
        server_stop_forced: WARN "server stop forced" [reason]
            "A second stop signal or `uppercased stop`; open connections are closed.";
        server_stopped: INFO "server stopped" [accepted, received_bytes, sent_bytes, abandoned_bytes, migrated, lost_connections]
            "Every worker has exited; the fields are the totals of the server's life.";
        status_reported: INFO "status" [line]
            "One line of the status, at `SIGUSR1`.";
        addresses_not_written: DEBUG "addresses not written" [error]
            "Standard output does not accept the listening addresses.";
        log_lines_lost: WARN "log lines lost" [lines]
            "Standard error was full; written before the first line that found room again.";
    }
    "Operations" {
        operation_started: INFO "operation started" [operation, to_workers, request]
            "A reload, an upgrade or a change of the number of workers begins.";
        operation_done: INFO "operation done" [operation, to_workers, replaced, workers, migrated, draining, duration_ms]
            "It succeeded.";
        operation_refused: WARN "operation refused" [operation, to_workers, error]
            "It did not begin.";
        operation_not_prepared: ERROR "operation not prepared" [operation, to_workers, error]
            "It could not even be tried: invalid configuration, missing program.";
        operation_failed: ERROR "operation failed" [operation, to_workers, error]
            "It was rolled back; `error` says how far.";
        operation_cancelled: WARN "operation cancelled" [operation, to_workers, client_pid, client_uid]
            "`uppercased cancel`: it rolls back and fails.";
        cpus_changed: INFO "cpus changed, scaling" [workers, cpus]
            "With `workers = \"auto\"` the affinity or the CPU quota of the server has changed: the number of workers follows.";
        request_pending: INFO "request pending" [operation, to_workers, request]
            "It begins when nothing is in its way; `request` is 0 for a signal.";
        request_withdrawn: INFO "request withdrawn" [operation, to_workers, request]
            "The client of a pending request disconnected.";
        rollback_started: ERROR "rollback started" [error, slots]
            "A reload or an upgrade failed; `slots` slots get their old release again.";
        rotation_changed: INFO "rotation changed" [from, to]
            "An operator took the server out of load-balancer rotation, or brought it back.";
    }
    "Workers" {
        worker_starting: INFO "worker starting" [slot, generation, listener]
            "A worker is about to be forked, at the start and at every replacement.";
        worker_ready: INFO "worker ready" [slot, generation, worker_pid, duration_ms]
            "The worker serves; `duration_ms` since its fork.";
        worker_standing_by: INFO "worker standing by" [slot, generation, worker_pid, duration_ms]
            "A new worker is ready beside the old one.";
        worker_start_failed: ERROR "worker start failed" [slot, generation, error]
            "No process, channel or memory for it; the slot backs off.";
        worker_start_timed_out: ERROR "worker start timed out, killed" [slot, generation, duration_ms]
            "It was not ready within `start_timeout`; counts as a failure of the slot.";
        worker_died: ERROR "worker exited unexpectedly" [slot, generation, exit_code, signal, served_ms, error, lost_connections]
            "A worker exited unexpectedly. `served_ms` is missing if it never served.";
        worker_rescued: WARN "worker rescued" [slot, generation, worker_pid, exit_code, signal, error, connections, owed_bytes, reset, duration_ms]
            "The worker's process ended and its keeper continues the worker: `connections` go on, `reset` could not be continued; `owed_bytes` had been received and not answered, and were answered now.";
        rescue_timed_out: ERROR "rescue timed out" [slot, generation, worker_pid]
            "A keeper did not continue its worker in time and is killed. The first time its own keeper continues the worker, if it has one; else the slot gets a new worker.";
        keeper_lost: WARN "keeper lost" [slot, generation]
            "The keeper of a running worker ended; the worker gets another one.";
        keeper_replaced: INFO "keeper replaced" [slot, generation, keeper_pid]
            "A worker has another keeper in place of a lost one.";
        keeper_not_watched: WARN "keeper not watched" [slot, generation, keeper_pid, error]
            "The process that a worker names as its keeper is no child of the supervisor, or cannot be watched; the worker is not rescued.";
        worker_backing_off: WARN "worker crash-looping, restart delayed" [slot, delay_ms, failures]
            "The slot failed `failures` times in a row.";
        worker_channel_broken: ERROR "worker channel broken, worker killed" [slot, generation, error]
            "The worker sent something that it may not send, or cannot be reached; it is replaced.";
        worker_stalled: WARN "worker stalled" [slot, generation, worker_pid, duration_ms]
            "Its event loop did not run when asked to: it is stopped, frozen or blocked. The server is not ready meanwhile.";
        worker_recovered: INFO "worker running again" [slot, generation, worker_pid, duration_ms]
            "The event loop of a stalled worker runs.";
        worker_hung: ERROR "worker unresponsive, killed" [slot, generation, duration_ms]
            "Its event loop did not run for `hang_timeout`.";
        worker_not_reaped: ERROR "killed worker still running" [slot, generation, worker_pid, duration_ms]
            "The kernel holds it (an unresponsive disk or file server, a frozen group). After 2 s its slot gets a new worker; it is reaped when it exits. `/proc/PID/stack` shows where it is held. If it still runs when the server stops, the exit status is 1.";
        worker_kill_failed: ERROR "worker kill failed" [slot, generation, worker_pid, error]
            "The system refused the signal: does the server still have `CAP_KILL`?";
        child_kill_failed: ERROR "child kill failed, retrying" [child_pid, error]
            "A child process cannot be signalled or watched; tried every second.";
        worker_draining: DEBUG "worker draining" [slot, generation, connections]
            "It has stopped accepting.";
        worker_stopped: INFO "worker stopped" [slot, generation]
            "It exited on request.";
        worker_killed_idle: DEBUG "idle worker ended" [slot, generation, exit_code, signal]
            "It was killed during a stop with no connection open.";
        worker_cut_short: WARN "worker ended with open connections" [slot, generation, exit_code, signal, lost_connections]
            "It was killed during a stop.";
        worker_stop_timed_out: WARN "worker stop timed out, killed" [slot, generation, duration_ms]
            "It ran longer than `drain_timeout` and a margin.";
        worker_restored: WARN "old worker serving again" [slot, generation]
            "The new worker of its slot failed.";
        worker_counters_invalid: WARN "worker counters invalid, ignored" [slot, generation]
            "A dead worker left impossible counters; nothing is added to the totals, and its successor counts in new memory.";
        worker_sandbox_incomplete: WARN "worker sandbox incomplete" [missing]
            "The kernel or the container lacks a layer; once for all workers that lack the same.";
        invariant_broken: ERROR "invariant broken" [error, total]
            "The supervisor repaired an impossible state; a bug of this program, report it.";
        stale_event_dropped: DEBUG "stale event dropped" [dropped, total]
            "A report about a worker that is gone.";
    }
    "Handovers and rebalancing" {
        handover_started: DEBUG "handover started" [slot, generation, to_slot, to_generation]
            "Connections begin to migrate to another worker.";
        handover_finished: INFO "handover finished" [slot, generation, migrated, duration_ms]
            "Every connection has migrated.";
        handover_incomplete: WARN "handover incomplete" [slot, generation, migrated, remaining, duration_ms, error]
            "`remaining` connections could not migrate: the operation rolls back, or with `--drain` the old worker serves them within `drain_timeout`.";
        handover_receiver_gone: ERROR "handover receiver gone" [slot, generation, migrated, remaining, duration_ms]
            "The sender serves on.";
        handover_stalled: ERROR "handover stalled, worker killed" [slot, generation, from_generation, to_generation, duration_ms]
            "One side made no progress for `handover_timeout`.";
        rebalance_started: INFO "rebalance started" [slot, to_slot, calls_per_second, to_calls_per_second]
            "With `rebalance`: a part of the connections migrates to a worker with less to do.";
        rebalance_finished: INFO "rebalance finished" [slot, to_slot, migrated, duration_ms]
            "The part has migrated.";
        rebalance_incomplete: WARN "rebalance incomplete" [slot, to_slot, migrated, duration_ms, error]
            "The rest stays with the sender.";
        rebalance_timed_out: WARN "rebalance timed out" [slot, to_slot, duration_ms]
            "Not waited for any longer.";
    }
    "Listeners and accept queues" {
        queue_lent: WARN "queue lent to sibling" [slot, to_slot, to_generation, duration_ms]
            "A slot has had no worker for `lend_after`; another slot's worker serves its queue.";
        queue_recalled: INFO "queue recalled" [slot, from_slot]
            "The slot has a worker again.";
        queue_emptied: INFO "queue of leaving slot emptied" [slot, from_slot]
            "`scale` to fewer workers removed a slot that had no worker; a sibling accepted its queue.";
        accept_queue_full: WARN "accept queue full" [slot, length, limit]
            "The kernel drops further handshakes; clients retry. The worker is overloaded or stalled, or `backlog` is too small. Sampled once a second.";
        accept_queue_emptied: INFO "accept queue emptied" [slot, length, limit]
            "No client waits any more.";
        listeners_inherited: INFO "listeners inherited from service manager" [slots, from_unit]
            "A start with sockets of systemd.";
        stored_socket_closed: WARN "stored socket unusable, closed" [name, error, address]
            "A socket of the service manager fits no slot.";
        listener_lost: ERROR "listener lost" [error, fd, owner_slot]
            "A listening socket does not listen any more (as after `ss -K`); the supervisor binds another.";
        listener_rebound: WARN "listener bound again" [worker_slot, worker_generation, slot]
            "The replacement of a lost listener.";
        listener_rebind_failed: ERROR "listener rebind failed" [worker_slot, worker_generation, slot, error]
            "Tried again every second.";
        listener_options_not_set: ERROR "listener options not set" [slot, error]
            "New connections of the slot lack the configured keepalive, buffer sizes or timeout, or its queue the configured `backlog`.";
        listener_not_lent: ERROR "listener not lent" [to_slot, to_generation, error]
            "Out of descriptors; the queue waits for its slot's next worker.";
        slot_not_dropped: ERROR "slot not dropped" [slot]
            "A bug of this program; report it.";
        connections_spread: DEBUG "connection spreading changed" [steer, sockets]
            "A program was attached to the port's group.";
        steering_failed: ERROR "connection steering failed" [error]
            "The kernel spreads connections by its hash; a handshake that begins while a listener closes may be reset.";
        steering_unavailable: WARN "port shared, steering unavailable" []
            "With `share_port`, when workers leave: a handshake that begins while a listener closes may be reset.";
        cpu_set_unknown: WARN "cpu set unknown, workers unpinned" [error]
            "With `pin`.";
        port_lock_unavailable: DEBUG "port lock unavailable" [error]
            "The port is served, but a second instance on it may not be refused.";
        port_lock_unwatched: DEBUG "port lock not watched" [error]
            "As above.";
    }
    "Service manager" {
        watchdog_paused: WARN "watchdog not fed" [slot, state]
            "The queue of the slot is not served.";
        watchdog_resumed: INFO "watchdog fed again" []
            "Every queue is served again.";
        notify_blocked: WARN "notify socket blocked, retrying" [error]
            "`NOTIFY_SOCKET` accepts no messages; serving does not depend on it.";
        notify_recovered: INFO "notify socket writable again" [refused]
            "`refused` attempts to send had failed.";
        notify_unusable: WARN "notify socket unusable" [socket, error]
            "The service manager gets no messages.";
        fdstore_removal_unconfirmed: WARN "fd-store removal unconfirmed" [error]
            "No barrier could be sent.";
        lease_not_stored: WARN "lease unconfirmed" [error]
            "If the supervisor dies and the service manager starts no other, workers stop after `orphan_timeout`, not at once.";
        lease_voided: INFO "lease voided" []
            "The service manager stores nothing, or has emptied its store: as above.";
    }
    "Admin endpoint" {
        admin_ready: INFO "admin endpoint open" [address, agent, admin_pid]
            "The process that answers at `admin` and `agent` serves; serving clients does not depend on it.";
        admin_died: ERROR "admin process exited unexpectedly" [exit_code, signal, error, delay_ms]
            "It is started again after `delay_ms`.";
        admin_start_failed: ERROR "admin process start failed" [error, delay_ms]
            "Tried again after `delay_ms`.";
        admin_sandbox_incomplete: WARN "admin sandbox incomplete" [missing]
            "As for workers.";
        admin_client_refused: WARN "admin client refused" [peer, refused]
            "A client that is not in `admin_allow` got 403; at most one line a second, `refused` is the number since the last.";
        admin_answer_cut: DEBUG "admin answer cut short" [unsent_bytes]
            "A client did not read its answer in time, or not while others waited.";
    }
    "Control socket" {
        control_socket_opened: DEBUG "control socket opened" [path]
            "It accepts commands.";
        control_socket_unavailable: INFO "control socket unavailable, signals only" [error]
            "The system has no place for it.";
        control_socket_failed: WARN "control socket failed, signals only" [error]
            "It could not be created.";
        control_socket_replaced: DEBUG "stale control socket removed" [path]
            "The socket of a server that is gone.";
        control_socket_restored: WARN "control socket file restored" [path]
            "Something, such as a cleaner of temporary directories, removed the file; checked every 10 s and at every signal.";
        control_socket_lost: ERROR "control socket file lost" [error]
            "It cannot be created again; tried every 10 s.";
        control_socket_not_removed: WARN "control socket not removed" [path, error]
            "At the end of the server; the next server removes it.";
        control_accept_paused: WARN "control accept paused" [error]
            "Out of descriptors; no client is accepted for a second.";
        control_request_received: DEBUG "control request received" [request, command, client_pid, client_uid]
            "A client asks for an operation.";
        control_request_refused: WARN "control request refused" [error, client_pid, client_uid]
            "It is not a request of this version.";
        control_client_refused: WARN "control client refused" [error, client_pid, client_uid]
            "Another user, or too many clients.";
        control_client_lost: WARN "control client lost" [error, client_pid, client_uid]
            "The system refused to watch it; the connection is closed.";
        control_client_unidentified: WARN "control client without credentials" [error]
            "The system refused to identify it; the connection is closed.";
        control_client_timed_out: WARN "control client timed out" [client_pid, client_uid]
            "No whole request, or a reply not read, within 5 s.";
        control_client_not_reading: WARN "control client not reading, closed" [client_pid, client_uid]
            "4 MiB of replies wait for it.";
        control_client_displaced: WARN "slow control client displaced" [client_pid, client_uid, total]
            "A client that sent nothing, or did not read, lost its place to a waiting one; once a second, with the `total`.";
        control_client_left: DEBUG "control client disconnected" [request]
            "Before its request was answered.";
        control_reply_not_sent: ERROR "control reply not sent" [error]
            "Too large, or not encodable: the client gets `failed`.";
    }
    "Lines of a worker (with its `slot`, `generation` and `pid`)" {
        accept_paused: WARN "accept paused" [reason, connections, error, times]
            "At the connection limit, out of descriptors or memory, or for an error that no connection explains. At the limit, one line a second with the number of `times`; otherwise once, until accepting works again.";
        accept_resumed: INFO "accept resumed" [connections, times]
            "Connections are accepted again.";
        connection_refused: WARN "connection refused" [connection, peer, error, reason, refused, via]
            "A client was reset at once, or for its PROXY header (`via` is the proxy); one line a second for each reason, `refused` is the number since the last.";
        connection_opened: DEBUG "connection opened" [connection, peer, fd]
            "A client was accepted.";
        connection_migrated: DEBUG "connection migrated here" [connection, peer, fd]
            "Another worker has handed over the connection.";
        connection_closed: DEBUG "connection closed" [connection, peer, via, fd, received_bytes, sent_bytes, abandoned_bytes, reason, duration_ms]
            "`reason` is one of the reasons below.";
        proxy_header_accepted: DEBUG "proxy header accepted" [connection, peer, via, fd]
            "It named the client of a connection.";
        bytes_received: TRACE "bytes received" [fd, bytes]
            "Escaped and shortened.";
        bytes_sent: TRACE "bytes sent" [fd, bytes]
            "Escaped and shortened.";
        connection_watch_failed: ERROR "connection watch failed" [error, fd]
            "That connection is closed (`system_error`).";
        listener_watch_failed: ERROR "listener watch failed" [error, fd, times]
            "The event loop refuses it; tried again after `accept_retry`.";
        connection_not_continued: WARN "connection reset by rescue" [peer, fd, reason, error]
            "A process died, and what it left of this connection cannot be continued; `error` is the contradiction.";
        keeper_ended: DEBUG "keeper ended" [error]
            "The process that would have continued the worker is not needed, or cannot do so.";
        keeper_not_cloned: WARN "keeper not cloned" [error]
            "The worker has no process that would continue it; its death would close its connections.";
        listeners_replaced: INFO "listeners replaced" []
            "The worker has the replacement of a lost listener.";
        sibling_queue_served: INFO "serving queue of sibling" [from_slot]
            "The other end of `queue lent to sibling`.";
        sibling_queue_returned: INFO "queue of sibling returned" [from_slot]
            "The queue's slot has a worker again.";
        lent_listener_not_served: ERROR "lent listener not served" [error, from_slot]
            "Its clients wait for their slot's next worker.";
        sibling_queue_not_emptied: WARN "queue of sibling not emptied" [error, from_slot]
            "The system refused to accept while a slot without a worker left: the waiting clients were reset.";
        cpu_pinning_failed: WARN "cpu pinning failed" [cpu, error]
            "The scheduler places the worker.";
        oom_score_not_raised: DEBUG "oom score not raised" [error]
            "Also of the admin process. The supervisor may be killed for memory as soon as this process.";
        takeover_started: DEBUG "takeover started" [from_slot, from_generation, connections]
            "Connections of another worker are about to arrive.";
        takeover_finished: DEBUG "takeover finished" [connections]
            "Every connection has arrived.";
        takeover_failed: ERROR "takeover failed" [error, from_slot, from_generation]
            "The connections stay where they are.";
        takeover_refused: WARN "takeover refused" [error]
            "The worker leaves itself, or received an invalid packet: the sender keeps what was not acknowledged.";
        takeover_incomplete: WARN "takeover incomplete" [connections, error]
            "No descriptor, no memory, or an unreadable record: these connections stay with the sender.";
        takeover_batch_declined: WARN "takeover batch declined" [error]
            "As above, for a whole batch.";
        takeover_batch_returned: ERROR "takeover batch returned" [error]
            "It could not be acknowledged; the sender keeps it.";
        takeover_not_counted: WARN "takeover not counted in time" []
            "The sender did not report its number of connections in time; new ones are accepted meanwhile.";
        handover_resumed: INFO "handover resumed" [connections]
            "Its process died; what was in flight is sent again.";
        takeover_resumed: INFO "takeover resumed" [connections]
            "Its process died; the last answers are sent again.";
        unnamed_descriptor_closed: INFO "unnamed descriptor closed" [fd]
            "A process had received it and died; its sender has the connection, or the supervisor sends it again.";
        handover_socket_failed: ERROR "handover socket failed" [error]
            "What was not acknowledged stays with the sender.";
        connections_leaving: DEBUG "connections leaving" [to_slot, to_generation, connections]
            "A handover begins.";
        connections_left: DEBUG "connections left" [migrated, remaining, reason]
            "It ended.";
        handover_not_begun: ERROR "handover not begun" [error, to_slot, to_generation]
            "The connections stay where they are.";
        handover_impossible: ERROR "handover impossible in this phase" [to_slot, to_generation, phase]
            "The connections stay where they are.";
        part_leaving: DEBUG "part of connections leaving" [to_slot, to_generation, permille, at_most]
            "With `rebalance`.";
        part_left: DEBUG "part of connections left" [migrated, reason]
            "With `rebalance`.";
        part_not_begun: WARN "part of connections not leaving" [error, to_slot, to_generation]
            "With `rebalance`.";
        worker_leaving: INFO "worker leaving" [connections]
            "It serves established connections until they end.";
        repeated_handover_ignored: DEBUG "repeated handover ignored" [to_slot]
            "The supervisor repeats its request when the process of a worker has died.";
        repeated_leave_ignored: WARN "repeated leave ignored" [phase]
            "A message that crossed the worker's end.";
        second_start_ignored: WARN "second start ignored" []
            "As above.";
        stale_message_dropped: WARN "stale message dropped" [to_slot, to_generation]
            "It was meant for another worker.";
        drain_started: INFO "drain started" [connections]
            "Pending replies are sent, then each stream is ended.";
        leave_timed_out: INFO "leave timed out, draining" [connections]
            "The connections of a leaving worker are closed gracefully.";
        drain_timed_out: WARN "drain timed out, connections closed" [connections]
            "Replies were still pending (`drain_timeout` among the close reasons).";
        supervisor_lost: WARN "supervisor gone" [error, connections, timeout_ms]
            "The worker goes on serving for `timeout_ms` (`orphan_timeout`).";
        visitor_refused: WARN "visitor refused" [client_uid]
            "A process of another user has connected at the worker's rendezvous.";
        visitor_left: DEBUG "visitor left" [error]
            "A starting server has connected and did not adopt the worker.";
        introduction_failed: WARN "introduction failed" [error]
            "A starting server cannot adopt the worker.";
        worker_adopted: INFO "adopted by new supervisor" [connections]
            "The worker has a supervisor again.";
        adoption_ignored: WARN "adoption ignored" []
            "A message that crossed another adoption.";
        supervisor_not_watched: WARN "supervisor not watched" [error]
            "The worker notices its supervisor's death by its channel only.";
        orphan_stopped: INFO "orphan stops" [reason]
            "The worker has no supervisor; its time is over, the service manager will start no other (`lease_ended`), or it received a signal. It stops within `drain_timeout`.";
        worker_finished: DEBUG "worker finished" [accepted, received_bytes, sent_bytes, abandoned_bytes, cut_connections]
            "The counters of its slot as it exits.";
        event_loop_failed: ERROR "event loop failed" [error]
            "The worker exits and is replaced.";
        worker_panicked: ERROR "worker panicked" [error]
            "A bug of this program; report it. The worker is replaced.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A longer message is hard to search for.
    const WORDS_MAX: usize = 6;

    fn all() -> impl Iterator<Item = &'static Declared> {
        SECTIONS.iter().flat_map(|(_, events)| *events)
    }

    #[test]
    fn messages_are_short_and_lower_case() {
        for event in all() {
            let words = event.message.split_whitespace().count();
            assert!((1..=WORDS_MAX).contains(&words), "{event:?}");
            assert_eq!(event.message, event.message.to_lowercase());
            let prose = event.message.contains(['.', ';', ':', '\'', '"']);
            assert!(!prose || event.message.contains("net.core"), "{event:?}");
            assert!(event.meaning.ends_with(['.', '?']), "{event:?}");
        }
    }

    #[test]
    fn keys_and_messages_are_unique() {
        let keys: BTreeSet<&str> = all().map(|event| event.key).collect();
        let messages: BTreeSet<&str> = all().map(|event| event.message).collect();
        assert_eq!((keys.len(), messages.len()), (all().count(), all().count()));
    }

    #[test]
    fn fields_have_the_names_of_the_convention() {
        // `pid` is the writer's own. The cause has two names: one for a code, one for a text.
        let synonyms = [
            "cause", "why", "how", "by", "end", "outcome", "what", "detail", "uid", "event",
        ];
        for event in all() {
            for field in event.fields {
                assert!(!synonyms.contains(field), "{field} of {event:?}");
                let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(field.chars().all(snake), "{field} of {event:?}");
            }
            let own = ["server_starting", "server_ready", "server_resumed"];
            assert!(
                !event.fields.contains(&"pid") || own.contains(&event.key),
                "{event:?}"
            );
        }
    }

    #[test]
    fn the_documentation_agrees_with_the_events() {
        let mut table = String::new();
        for (section, events) in SECTIONS {
            table += &format!("\n### {section}\n\n");
            table += "| event | level | message | fields | meaning |\n|---|---|---|---|---|\n";
            for Declared {
                key,
                level,
                message,
                fields,
                meaning,
            } in *events
            {
                let level = level.to_string().to_lowercase();
                let fields = fields.join(", ");
                table += &format!("| `{key}` | {level} | {message} | {fields} | {meaning} |\n");
            }
        }
        crate::documented::agrees("reference.md", "log events", &table);
    }
}
