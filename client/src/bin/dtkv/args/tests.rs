use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_help_with_examples() {
    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
            assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
        }
        if command.has_subcommands() {
            command.get_subcommands().for_each(|command| check(command, &path));
        } else {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  ") && help.contains("dtkv"), "{path} has no examples");
        }
    }
    Cli::command().get_subcommands().for_each(|command| check(command, "dtkv"));
}

#[test]
fn global_options_may_stand_anywhere() {
    for line in ["dtkv -g 7 -o json get a", "dtkv get a -g 7 -o json", "dtkv get -g 7 a --output json"] {
        let cli = parse(line).unwrap();
        assert_eq!((cli.global.group, cli.global.output), (Some(7), Some(Layout::Json)), "{line}");
    }
    let cli = parse("dtkv -e a:1,b:2 -e c:3 groups").unwrap();
    assert_eq!(cli.global.endpoints, ["a:1", "b:2", "c:3"]);
}

#[test]
fn compare_and_set_needs_one_expectation_and_one_wish() {
    assert!(parse("dtkv cas k --absent --set v").is_ok());
    assert!(parse("dtkv cas k --expect -1 --delete").is_ok());
    for line in [
        "cas k --set v",
        "cas k --absent",
        "cas k --absent --index 1 --set v",
        "cas k --absent --set v --delete",
    ] {
        assert!(parse(&format!("dtkv {line}")).is_err(), "{line}");
    }
}

#[test]
fn values_may_begin_with_a_hyphen() {
    let Command::Put(args) = parse("dtkv put k -5").unwrap().command else { panic!() };
    assert_eq!(args.value, "-5");
    let Command::Put(args) = parse("dtkv put k -").unwrap().command else { panic!() };
    assert_eq!(args.value, "-");
}

#[test]
fn numbers_out_of_range_are_usage_errors() {
    for line in ["batch -n 1025", "bench -p 0", "bench --mix 101", "ls -n 0", "cluster init --replicas 0"] {
        let error = parse(&format!("dtkv {line}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{line}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn membership_lists_are_split_at_commas() {
    let Command::Group(GroupCommand::Change { voters, learners, .. }) =
        parse("dtkv group change 1 --voters 1,2,3 --learners 4").unwrap().command
    else {
        panic!()
    };
    assert_eq!((voters, learners), (vec![1, 2, 3], vec![4]));
}
