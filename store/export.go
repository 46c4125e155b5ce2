package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// An export is read page by page, newest key first, each page in a short transaction of its own: a snapshot of the whole
// would have to stay open for as long as the slowest reader takes, and would keep the tables that change thousands of
// times a second from being cleaned up meanwhile. So each row is as it was when its page was read.

// exportPageBytes is where a page ends, give or take one row; exportPageRows is how many rows it has at most.
const (
	exportPageBytes = 4 << 20
	exportPageRows  = 200
	exportLargeRows = 20 // of tasks, each of which may have more than a MiB
)

// ExportPage reads the next page of one of Holdings in an export: rows as JSON objects, and where the next page begins.
// after is nil for the first page; next is nil behind the last. Only tables with Export have rows.
//
// A column of Holding.Export is its name in the table t; "id>task_" writes an id with its prefix, "u.email" is a joined
// table's.
func (a *API) ExportPage(ctx context.Context, ws uuid.UUID, h Holding, after []string) (rows []json.RawMessage, next []string, err error) {
	query, limit := h.exportQuery(after != nil), exportPageRows
	if h.Table == "tasks" {
		limit = exportLargeRows
	}
	args := []any{ws, limit}
	for _, key := range after {
		args = append(args, key)
	}
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		rows, next = nil, nil
		found, err := tx.QueryxContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer found.Close()
		keys := make([]string, len(h.key))
		for size := 0; found.Next(); {
			var row string
			into := []any{&row}
			for i := range keys {
				into = append(into, &keys[i])
			}
			if err := found.Scan(into...); err != nil {
				return err
			}
			rows = append(rows, json.RawMessage(row))
			if size += len(row); len(rows) == limit || size >= exportPageBytes {
				next = keys
				break
			}
		}
		return found.Err()
	})
	if err != nil {
		return nil, nil, fmt.Errorf("export %s: %w", h.Table, err)
	}
	return rows, next, nil
}

// exportQuery selects a page: $1 is the workspace, $2 the most rows, from $3 on the key before.
func (h Holding) exportQuery(further bool) string {
	columns := make([]string, len(h.Export))
	for i, c := range h.Export {
		name, prefix, isID := strings.Cut(c, ">")
		switch {
		case isID:
			columns[i] = fmt.Sprintf(`'%s' || replace(t.%s::text, '-', '') AS %s`, prefix, name, name)
		case strings.Contains(c, "."):
			columns[i] = c
		default:
			columns[i] = "t." + c
		}
	}
	var texts, order, keys, before []string
	for i, k := range h.key {
		name, kind, _ := strings.Cut(k, ":")
		texts = append(texts, "t."+name+"::text")
		order = append(order, "t."+name+" DESC")
		keys = append(keys, "t."+name)
		before = append(before, fmt.Sprintf("$%d::%s", i+3, kind))
	}
	where := "t.workspace_id = $1"
	if h.Table == "workspaces" {
		where = "t.id = $1"
	}
	if further {
		where += fmt.Sprintf(" AND (%s) < (%s)", strings.Join(keys, ", "), strings.Join(before, ", "))
	}
	return fmt.Sprintf(`SELECT row_to_json((SELECT r FROM (SELECT %s) r))::text, %s FROM %s t %s WHERE %s ORDER BY %s LIMIT $2`,
		strings.Join(columns, ", "), strings.Join(texts, ", "), h.Table, h.join, where, strings.Join(order, ", "))
}
