from p2pgrid.cli.main import main

if __name__ == "__main__":
    main()
