package store

import (
	"context"
	"database/sql"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// readOne reads one row of one workspace into the struct dest points to, in one round trip: the statement that sets the scope and the query
// travel together, and Postgres runs them as one transaction of their own. Such a message has no parameters, so the
// query's $1, $2, … are written out, which is why they can be nothing but ids. sql.ErrNoRows when there is no row.
func (a *API) readOne(ctx context.Context, ws uuid.UUID, dest any, query string, ids ...uuid.UUID) error {
	literals := make([]string, 0, 2*len(ids))
	for i := len(ids) - 1; i >= 0; i-- { // $10 before $1
		literals = append(literals, "$"+strconv.Itoa(i+1), "'"+ids[i].String()+"'::uuid")
	}
	rows, err := a.db.QueryxContext(ctx, `SELECT set_config('app.workspace_id', '`+ws.String()+`', true); `+strings.NewReplacer(literals...).Replace(query))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() { // the scope's
	}
	if !rows.NextResultSet() || !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return sql.ErrNoRows
	}
	return rows.StructScan(dest)
}
