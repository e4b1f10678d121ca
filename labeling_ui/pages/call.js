// Shared by all pages: requests that carry the session's token, and end at the login page when the session has ended.
let csrfToken = '';

async function call(path, { method = 'GET', body } = {}) {
  const headers = { Accept: 'application/json' };
  if (method !== 'GET') headers['X-CSRF-Token'] = csrfToken;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(path, {
    method, headers, credentials: 'same-origin', body: body === undefined ? undefined : JSON.stringify(body),
  });
  const reply = await response.json();
  if (response.ok) return reply;
  if (response.status === 401 && path !== '/api/login') window.location.href = '/login/';
  if (response.status >= 500) throw new Error('server');
  const refused = new Error(typeof reply.detail === 'string' ? reply.detail : [reply.detail || 'refused'].flat().join('; '));
  refused.refused = true;
  refused.status = response.status;
  throw refused;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

