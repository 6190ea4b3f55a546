-- migrate:up
-- masking: the keys, and the functions that parse a message and bring a value into its canonical form. None of the
-- functions knows a key, so that whoever may call them learns nothing. dbt adds the boundary view (dbt_project/).

grant usage on schema extensions to masker;  -- here and not with the other grants: token() below names pgcrypto

set local role masker;

create table masking.keys (
    kind text check (kind in ('ip', 'device_id')),
    version integer check (version > 0),
    key bytea not null check (octet_length(key) >= 32),  -- pgcrypto takes an empty key in silence
    created_at timestamptz not null default now(),
    created_by name not null default session_user,
    primary key (kind, version)
);
alter table masking.keys alter column key set statistics 0;
comment on table masking.keys is 'HMAC keys, one per kind of value and version. Readable by masker alone.';

insert into masking.keys (kind, version, key)
select kind, 1, extensions.gen_random_bytes(32)
from unnest(array['ip', 'device_id']) as kind;

-- Stops a query whose key is missing: hmac with a null key would be null, in silence.
create function masking.fail(message text) returns bytea
language plpgsql stable parallel safe as $$
begin
    raise exception '%', message;
end $$;

create function masking.token(value text, key bytea) returns text
language sql stable parallel safe
return encode(extensions.hmac(convert_to(value, 'UTF8'), key, 'sha256'), 'hex');

-- Blanks at both ends and ASCII case do not count. Collation C: the same in every database, now and later; \x0B and not
-- \v, which is the letter v before PostgreSQL 16.
create function masking.canonical_text(value text) returns text
language sql immutable parallel safe
return lower(btrim(value, E' \t\n\r\x0B\f') collate "C");

create function masking.canonical_device_id(value text) returns text
language sql immutable parallel safe
return nullif(masking.canonical_text(value), '');

-- An IPv4 address written as IPv6 (::ffff:192.0.2.1) is that IPv4 address.
create function masking.canonical_address(address inet) returns text
language sql immutable parallel safe
return case
    when host(address) like '::ffff:%.%' then substr(host(address), 8)
    else host(address)
end;

-- How deep a JSON text is nested, whatever else is wrong with it; brackets inside strings do not count.
create function masking.json_depth(body text) returns bigint
language sql immutable parallel safe
return (
    select max(depth) from (
        select sum(case when bracket in ('[', '{') then 1 else -1 end) over (order by position) as depth
        from string_to_table(
            regexp_replace(regexp_replace(body, '"(?:[^"\\]|\\.)*"', '', 'g'), '[^][{}]', '', 'g'), null
        ) with ordinality as brackets (bracket, position)
    ) as depths
);

-- parse_json: the message as jsonb, or null when it is not JSON that PostgreSQL can hold (\u0000, a lone surrogate, a
-- number past numeric, deeper than 1,000 levels). Deep nesting would end the query with "stack depth limit exceeded",
-- which pg_input_is_valid does not catch; 4 kB cannot be that deep, so only longer bodies are measured.
-- canonical_ip: an address as PostgreSQL prints it, other text after "raw:", so that no text can pass for an address.
-- Both need "is this valid?" without an error. Before PostgreSQL 16 that takes an exception block, and a function with
-- one is PARALLEL UNSAFE and names the conditions: in a parallel CREATE TABLE AS it would fail for good values.
do $$
begin
    if current_setting('server_version_num')::integer >= 160000 then
        create function masking.parse_json(body text) returns jsonb
        language sql stable parallel safe
        return case
            when octet_length(body) > 4096 and masking.json_depth(body) > 1000 then null
            when pg_input_is_valid(body, 'jsonb') then body::jsonb
        end;

        create function masking.canonical_ip(value text) returns text
        language sql stable parallel safe
        return case
            when masking.canonical_text(value) = '' then null
            when pg_input_is_valid(masking.canonical_text(value), 'inet')
                then masking.canonical_address(masking.canonical_text(value)::inet)
            else 'raw:' || masking.canonical_text(value)
        end;
    else
        create function masking.parse_json(body text) returns jsonb
        language plpgsql stable parallel unsafe as $f$
        begin
            if octet_length(body) > 4096 and masking.json_depth(body) > 1000 then
                return null;
            end if;
            return body::jsonb;
        exception
            when data_exception or statement_too_complex then return null;
        end $f$;

        create function masking.canonical_ip(value text) returns text
        language plpgsql stable parallel unsafe as $f$
        begin
            if masking.canonical_text(value) = '' then
                return null;
            end if;
            return masking.canonical_address(masking.canonical_text(value)::inet);
        exception
            when data_exception then return 'raw:' || masking.canonical_text(value);
        end $f$;
    end if;
end $$;

reset role;

-- migrate:down
-- none: the way back is a backup
