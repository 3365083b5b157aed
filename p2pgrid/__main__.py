from p2pgrid.cli.app import main

if __name__ == "__main__":
    main()
