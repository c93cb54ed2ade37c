-- Roles with no more rights than they need, for a journal in PostgreSQL. An administrator runs this in the
-- journal's database after `subsidy-pos journal make`, or after `subsidy-pos journal copy` has made the tables
-- there, and gives both roles a password. Roles are of the whole server, rights of one database: what is there
-- already stays, and in each further database this is run again.

-- The service. It appends to the journal and reads it, and can neither change nor remove an entry. The book
-- is its own: it makes, fills, drops and rebuilds it.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'subsidy_pos') THEN
        CREATE ROLE subsidy_pos LOGIN;
    END IF;
END $$;
GRANT SELECT, INSERT ON journal TO subsidy_pos;
GRANT SELECT ON subsidy_pos_schema TO subsidy_pos;
CREATE SCHEMA IF NOT EXISTS book AUTHORIZATION subsidy_pos;

-- Whoever verifies, copies or reports. It only reads.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'subsidy_auditor') THEN
        CREATE ROLE subsidy_auditor LOGIN;
    END IF;
END $$;
GRANT SELECT ON journal, subsidy_pos_schema TO subsidy_auditor;
GRANT USAGE ON SCHEMA book TO subsidy_auditor;
ALTER DEFAULT PRIVILEGES FOR ROLE subsidy_pos IN SCHEMA book GRANT SELECT ON TABLES TO subsidy_auditor;
