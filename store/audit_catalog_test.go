package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestTheAuditFindsEachBrokenRule breaks each rule of the catalog's audit in a transaction of its own and wants it found;
// the sound database, and what is allowed, pass.
func TestTheAuditFindsEachBrokenRule(t *testing.T) {
	t.Parallel()
	db := storetest.New(t).Admin(t)
	for name, c := range map[string]struct{ sql, want string }{
		"a sound database":                  {``, ""},
		"a security invoker's view":         {`CREATE VIEW mine WITH (security_invoker = on) AS SELECT * FROM tasks`, ""},
		"an invoker's function":             {`CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`, ""},
		"another role that bypasses":        {`CREATE ROLE wall_backup BYPASSRLS; GRANT pg_read_all_data TO wall_backup`, ""},
		"no RLS":                            {`ALTER TABLE tasks DISABLE ROW LEVEL SECURITY`, "tasks: a table with tenants' rows"},
		"no FORCE":                          {`ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY`, "tasks: a table with tenants' rows"},
		"a copy in another schema":          {`CREATE SCHEMA old; CREATE TABLE old.tasks AS SELECT * FROM tasks`, "old.tasks: a table with tenants' rows"},
		"a superuser":                       {`ALTER ROLE muster_api SUPERUSER`, "muster_api: a login role must be neither"},
		"a bypasser":                        {`ALTER ROLE muster_worker BYPASSRLS`, "muster_worker: a login role must be neither"},
		"a maker of roles":                  {`ALTER ROLE muster_system CREATEROLE`, "muster_system: a login role must be neither"},
		"a maker of databases":              {`ALTER ROLE muster_api CREATEDB`, "muster_api: a login role must be neither"},
		"a replicator":                      {`ALTER ROLE muster_api REPLICATION`, "muster_api: a login role must be neither"},
		"a member":                          {`GRANT muster_system TO muster_api`, "muster_api of muster_system: a login role must be no member"},
		"a member of a system role":         {`GRANT pg_read_all_data TO muster_worker`, "muster_worker of pg_read_all_data"},
		"a missing role":                    {`ALTER ROLE muster_worker RENAME TO wall_worker`, "muster_worker: a login role must exist"},
		"an owned table":                    {`ALTER TABLE tasks OWNER TO muster_api`, "tasks of muster_api: a login role must own nothing"},
		"an owned function":                 {`CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION f OWNER TO muster_api`, "f of muster_api: a login role must own nothing"},
		"an owned schema":                   {`CREATE SCHEMA s AUTHORIZATION muster_worker`, "s of muster_worker: a login role must own nothing"},
		"CREATE in the schema for all":      {`GRANT CREATE ON SCHEMA public TO PUBLIC`, "public by muster_api: no login role may create"},
		"CREATE in the schema for one":      {`GRANT CREATE ON SCHEMA public TO muster_worker`, "public by muster_worker: no login role may create"},
		"CREATE in the database":            {`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC', current_database()); END $$`, "by muster_api: no login role may create"},
		"an open policy":                    {`ALTER POLICY api_own ON tasks USING (true)`, "api_own on tasks: a policy of the API's role"},
		"an open check":                     {`ALTER POLICY api_own ON tasks WITH CHECK (true)`, "api_own on tasks: a policy of the API's role"},
		"a restrictive policy":              {`CREATE POLICY wall ON tasks AS RESTRICTIVE TO muster_api USING (true)`, "policy tasks wall for all to muster_api: this version does not say so"},
		"the system's policy for all":       {`ALTER POLICY system_line ON tasks TO PUBLIC`, "system_line on tasks: a policy of the API's role"},
		"grants in advance":                 {`ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO muster_api`, "muster_api by postgres: nothing may be granted in advance"},
		"grants in advance to all":          {`ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`, "PUBLIC by postgres: nothing may be granted in advance"},
		"TRUNCATE":                          {`GRANT TRUNCATE ON tasks TO muster_worker`, "tasks by muster_worker: no login role may truncate"},
		"TRIGGER":                           {`GRANT TRIGGER ON tasks TO PUBLIC`, "tasks by PUBLIC: no login role may truncate"},
		"an open log":                       {`GRANT DELETE ON audit_log TO muster_api`, "audit_log by muster_api: audit_log and metering_rows must be append-only"},
		"a definer's view":                  {`CREATE VIEW peek AS SELECT * FROM tasks`, "peek: a view must be a security invoker"},
		"a materialised view":               {`CREATE MATERIALIZED VIEW peek AS SELECT * FROM tasks`, "peek: a view must be a security invoker"},
		"a function of the line for all":    {`GRANT EXECUTE ON FUNCTION line_end TO PUBLIC`, "line_end: the line's functions must be granted to login roles alone"},
		"a definer's function":              {`CREATE FUNCTION leak() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM tasks'`, "leak: no function may run with its owner's rights"},
		"a global unique index":             {`CREATE UNIQUE INDEX tell ON tasks (agent, id)`, "tasks.tell: a unique constraint"},
		"a column more":                     {`GRANT UPDATE (model) ON agents TO muster_worker`, "grant muster_worker agents columns: update model: this version does not say so"},
		"a table more":                      {`GRANT SELECT ON user_tokens TO muster_worker`, "grant muster_worker user_tokens: select: this version does not say so"},
		"something for everybody":           {`GRANT SELECT ON workers TO PUBLIC`, "grant PUBLIC workers: select: this version does not say so"},
		"a privilege less":                  {`REVOKE SELECT ON tasks FROM muster_worker`, "grant muster_worker tasks: select update: this version says so"},
		"a policy less":                     {`DROP POLICY worker_line ON tasks`, "policy tasks worker_line for all to muster_worker: this version says so"},
		"a policy more":                     {`CREATE POLICY more ON tasks TO muster_api USING (agent = 'x')`, "policy tasks more for all to muster_api: this version does not say so"},
		"another version's schema, unheard": {`UPDATE goose_db_version SET version_id = version_id + 1000; GRANT SELECT ON user_tokens TO muster_worker`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tx := db.MustBegin()
			defer func() { _ = tx.Rollback() }()
			tx.MustExec(c.sql)
			findings, err := store.AuditOn(t.Context(), tx)
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, f := range findings {
				fmt.Fprintf(&all, "%s (%s)\n", f.What, f.Fix)
			}
			if (c.want == "") != (len(findings) == 0) || !strings.Contains(all.String(), c.want) {
				t.Errorf("found %q, want %q", all.String(), c.want)
			}
		})
	}
}
