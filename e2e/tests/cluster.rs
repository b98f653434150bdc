//! Clusters of real processes. One program for all subjects, because linking many takes longer than
//! running them; clusters wait for each other, so only one runs at a time.

mod cluster {
    mod bad_input;
    mod command_line;
    mod destroy_group;
    mod graceful_stop;
    mod kill_leader;
    mod locks;
    mod lost_disk;
    mod membership;
    mod once;
    mod overload;
    mod partition;
    mod restart_all;
    mod smoke;
    mod snapshot;
    mod temp;
    mod transfer;
    mod watch;
    mod watches;
}
