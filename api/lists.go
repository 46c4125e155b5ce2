package api

import (
	"net/http"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// listJSON is every list: newest first, with the cursor of the next page.
type listJSON[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor" description:"Send as cursor for the next page; null on the last."`
}

// pageParams are every list's.
type pageParams struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" description:"Items on a page."`
	Cursor string `query:"cursor" maxLength:"1000" description:"next_cursor of the page before, with the same filters."`
}

type idParam struct {
	ID string `path:"id"`
}

// pathID reads the {id} of the path. One that is malformed is answered like one that is unknown.
func (q *request) pathID(prefix, what string) (uuid.UUID, error) {
	id, ok := store.ParseID(prefix, q.gin.Param("id"))
	if !ok {
		return id, refuse(probNotFound, "no such "+what)
	}
	return id, nil
}

// bareID is pathID for requests that take no body.
func (q *request) bareID(prefix, what string) (uuid.UUID, error) {
	if err := q.noBody(); err != nil {
		return uuid.Nil, err
	}
	return q.pathID(prefix, what)
}

// listPage answers with a page of a list that runs down keys. The list's name is part of its cursors: it says whose it
// is, where the workspace alone does not, and by what it is filtered. rows reads at most n rows behind the key before,
// whose zero value is the start.
func listPage[K, R, J any](s *Server, q *request, list string, p pageParams, rows func(before K, n int) ([]R, error), key func(R) K, show func(R) J) (answer, error) {
	return walkPage(s, q, list, p, func(before K, n int) ([]R, *K, error) {
		found, err := rows(before, n)
		return found, nil, err
	}, key, show)
}

// walkPage is listPage for rows that may stop before they have found n: stopped is then the key to go on behind, and the page
// is shorter than its limit though another one follows.
func walkPage[K, R, J any](s *Server, q *request, list string, p pageParams, rows func(before K, n int) (found []R, stopped *K, err error), key func(R) K, show func(R) J) (answer, error) {
	var before K
	if p.Cursor != "" {
		if err := s.cursors.open(q.id.Workspace, list, p.Cursor, &before); err != nil {
			return answer{}, err
		}
	}
	found, stopped, err := rows(before, p.Limit+1) // one more, to know whether another page follows
	if err != nil {
		return answer{}, err
	}
	page := listJSON[J]{Data: []J{}}
	for _, row := range found[:min(len(found), p.Limit)] {
		page.Data = append(page.Data, show(row))
	}
	if len(found) > p.Limit {
		last := key(found[p.Limit-1])
		stopped = &last
	}
	if stopped != nil {
		next := s.cursors.seal(q.id.Workspace, list, *stopped)
		page.NextCursor = &next
	}
	return answer{status: http.StatusOK, body: page}, nil
}
