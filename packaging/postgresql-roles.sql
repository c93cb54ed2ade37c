-- Roles with no more rights than they need, for a journal in PostgreSQL. An administrator runs this in the
-- journal's database after `subsidy-pos journal make`, and gives both roles a password.

-- The service. It appends to the journal and reads it, and can neither change nor remove an entry. The book
-- is its own: it makes, fills, drops and rebuilds it.
CREATE ROLE subsidy_pos LOGIN;
GRANT SELECT, INSERT ON journal TO subsidy_pos;
GRANT SELECT ON subsidy_pos_schema TO subsidy_pos;
CREATE SCHEMA book AUTHORIZATION subsidy_pos;

-- Whoever verifies, copies or reports. It only reads.
CREATE ROLE subsidy_auditor LOGIN;
GRANT SELECT ON journal, subsidy_pos_schema TO subsidy_auditor;
GRANT USAGE ON SCHEMA book TO subsidy_auditor;
ALTER DEFAULT PRIVILEGES FOR ROLE subsidy_pos IN SCHEMA book GRANT SELECT ON TABLES TO subsidy_auditor;
