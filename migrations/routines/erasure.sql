-- Erasure (GDPR, article 17): a person's messages leave raw, the sealed originals and, with dbt's next run, staging and
-- analytics. What stays is that a message was erased, so that counts still add up and the queue cannot bring it back.

set local role pipeline_owner;

-- A message that comes back is erased in the statement that lands it, and counts as landed and erased. Redelivered, it
-- has its old id. Redriven from a dead-letter queue it has a new id and the same body; but so has the login of somebody
-- who returns later, so a body stays barred only as long as SQS can hold it: two weeks in each queue.
create or replace function privacy.erase_again() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from privacy.erased_messages) then
        with known as (
            select landed.message_id, landed.load_id, erased.body_mac, erased.erased_at, erased.erasure
            from landed inner join privacy.erased_messages as erased on landed.message_id = erased.message_id
            union all
            select landed.message_id, landed.load_id, erased.body_mac, erased.erased_at, erased.erasure
            from landed inner join privacy.erased_messages as erased
                on masking.token(masking.digest(landed.body), (select key from privacy.tombstone_key)) = erased.body_mac
            where erased.erased_at > now() - 28 * interval '24 hours'
        ),
        erased_again as (
            insert into privacy.erased_messages (message_id, load_id, body_mac, erased_at, erasure)
            select distinct on (message_id, load_id) * from known
            order by message_id, load_id, erased_at desc
            returning message_id
        )
        delete from raw.sqs_messages where message_id in (select message_id from erased_again);
    end if;
    return null;
end $$;

select raw.call_after_landing('privacy.erase_again');

-- transformer owns dbt's tables, and might put in their place what runs a function of transformer's, or what has equal
-- mean something else: a view, a policy, an index over an expression, a type, a collation or a column of its own
-- making. So functions with more rights read one table that consists of what PostgreSQL itself has, and nothing else.
-- The lock lets dbt read and write, and nobody change what the table is, until the end of the transaction.
create or replace function privacy.require_plain_table() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    taken constant regclass := 'staging.int_messages__masked';
begin
    if (select relkind from pg_class where oid = taken) = 'r' then
        lock table only staging.int_messages__masked in share update exclusive mode;
    end if;
    if exists (
        select from pg_class
        where
            oid = taken
            and (
                relkind <> 'r' or relam <> (select oid from pg_am where amname = 'heap') or relhassubclass
                or relispartition or relrowsecurity or relforcerowsecurity or relhasrules
            )
        union all
        select from pg_inherits where inhrelid = taken or inhparent = taken
        union all
        select from pg_attribute
        inner join pg_type on pg_type.oid = atttypid
        left join pg_collation on pg_collation.oid = attcollation
        where
            attrelid = taken and attnum > 0
            and (
                typnamespace <> 'pg_catalog'::regnamespace or attgenerated <> ''
                or collnamespace <> 'pg_catalog'::regnamespace or not collisdeterministic
                or (attname in ('message_id', 'subject') or attname like 'masked\_%')
                and atttypid not in ('text'::regtype, 'character varying'::regtype)
                or attname = 'load_id' and atttypid <> 'bigint'::regtype
            )
        union all
        select from pg_index
        where
            indrelid = taken
            and (
                indexprs is not null or indpred is not null
                or exists (
                    select from unnest(indcollation) as of_index (oid) inner join pg_collation using (oid)
                    where collnamespace <> 'pg_catalog'::regnamespace or not collisdeterministic
                )
                or exists (
                    select from unnest(indclass) as of_index (oid) inner join pg_opclass using (oid)
                    where opcnamespace <> 'pg_catalog'::regnamespace
                )
            )
        union all
        select from pg_constraint where conrelid = taken and contype in ('c', 'x')
        union all
        select from pg_statistic_ext where stxrelid = taken and stxexprs is not null
    ) or 3 <> (
        select count(*) from pg_attribute
        where attrelid = taken and attname in ('message_id', 'load_id', 'subject') and not attisdropped
    ) then
        raise exception '% is not as dbt makes it', taken
        using hint = 'Somebody changed it. `make attest` says how; drop it, and let dbt make it anew.';
    end if;
end $$;

-- Before the tokens of raw, of dbt's table and of the originals are compared.
create or replace function privacy.require_tokens_of_one_key() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    version integer;
begin
    execute 'select mask_key_version from masking.base_sqs__messages limit 1' into version;
    perform privacy.require_newest_key(version);
    perform privacy.require_newest_key(privacy.taken_key_version());
end $$;

-- Before a key is made: where the key of these tokens is lost, it would be another one.
create or replace function privacy.require_keys_of_tokens() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if to_regclass('staging.int_messages__masked') is not null then
        perform privacy.require_plain_table();
        perform privacy.require_newest_key(greatest(privacy.taken_key_version(), masking.key_version()));
    end if;
end $$;

create or replace function privacy.taken_key_version() returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    version integer;
begin
    execute 'select mask_key_version from only staging.int_messages__masked order by load_id desc limit 1' into version;
    return version;
end $$;

-- Its columns of tokens: each in a pattern, and all of their values in one array.
create or replace function privacy.token_columns(pattern text, separator text) returns text
language sql stable set search_path = pg_catalog, pg_temp
return (
    select string_agg(format(pattern, attname), separator order by attnum) from pg_attribute
    where attrelid = to_regclass('staging.int_messages__masked') and attnum > 0 and not attisdropped
        and attname like 'masked\_%'
);

create or replace function privacy.token_arrays() returns text
language sql stable set search_path = pg_catalog, pg_temp
return privacy.token_columns('array_agg(%I::text)', ' || ');

-- A regular expression for a text as JSON may write it: each character as itself or escaped, and escaped as often as
-- the message that has it was quoted in another. (PL/pgSQL reads a backslash as the session does.)
create or replace function privacy.as_json_writes(value text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
declare
    short_forms constant jsonb := jsonb_build_object(
        chr(8), '|\\+b', chr(9), '|\\+t', chr(10), '|\\+n', chr(12), '|\\+f', chr(13), '|\\+r'
    );
    pattern text := '';
    letter text;
    units integer[];  -- of UTF-16
begin
    foreach letter in array string_to_array(value, null) loop
        units := case
            when ascii(letter) < 65536 then array[ascii(letter)]
            else array[55232 + (ascii(letter) >> 10), 56320 + (ascii(letter) & 1023)]
        end;
        pattern := pattern || format(
            '(?:%s%s|%s%s)',
            case when letter in ('"', '\', '/') then '\\*' end,
            regexp_replace(letter, '([^[:alnum:]])', '\\\1'),
            (
                select string_agg('\\+u' || digits, '' order by position)
                from unnest(units) with ordinality as each (unit, position)
                cross join lateral (
                    select string_agg(format('[%s%s]', digit, upper(digit)), '' order by place)
                    from string_to_table(lpad(to_hex(unit), 4, '0'), null) with ordinality as hex (digit, place)
                ) as either_case (digits)
            ),
            short_forms ->> letter
        );
    end loop;
    return pattern;
end $$;

-- For a text that is no accepted message: a regular expression that finds the person in it, as a string of its own
-- under whatever key, however deep, in an envelope or in JSON that is itself a string; quoted as JSON does it, or as
-- Python and JavaScript do. A number also counts as a member of an object or list. Blanks around do not count.
create or replace function privacy.naming(person text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
return format(
    case
        when person ~ '^[0-9.eE+-]+$' then
            '%1$s%2$s%3$s%2$s%1$s|(?:%1$s%2$s:|(?:\[|(?:%1$s|[]}])%2$s,)(?:[^]["''{}]*,)?)%2$s%3$s%2$s[],}]'
        else '%1$s%2$s%3$s%2$s%1$s'
    end,
    '(?:''|' || privacy.as_json_writes('"') || ')',
    '(?:[ \t\n\r\x0B\f]|\\+[nrtf]|\\+u00(?:20|09|0[a-dA-D]))*',
    privacy.as_json_writes(person)
);

-- Waits for the loads that have begun and makes others wait until this transaction ends: what lands has to see the
-- tombstones, or a message that is redriven during an erasure would stay.
create or replace function privacy.hold_landings() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('idle_in_transaction_session_timeout', '60s', true);
    lock table only raw.sqs_messages in share row exclusive mode;
end $$;

-- For a privacy officer, by `make forget`. What to remove from raw, raw itself says: accepted messages by their
-- declared user, the others as text. Only of messages that raw no longer has, dbt's table is believed. Everything that
-- removes anything is in this one function, which puts itself on record.
create or replace function privacy.forget_user(
    user_id text,
    reason text,
    out from_raw bigint,  -- messages
    out from_originals bigint,  -- sealed values that nobody else has
    out from_analytics bigint,  -- messages that dbt's next run removes
    out not_looked_into bigint  -- messages that are encoded or compressed
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set row_security = off set standard_conforming_strings = on
set lock_timeout = '1min' as $$
declare
    person constant text := btrim(user_id, E' \t\n\r\x0B\f');
    in_flight constant bigint := raw.safe_load_id();
    comparison text;
    newly_found text[];
    newly_not_looked_into bigint;
    theirs text[] := '{}';
    taken_ids text[];
    taken_loads bigint[];
    still_in_raw text[];
    on_record bigint;
begin
    perform privacy.require_plain_table();
    if person = '' is not false then
        raise exception 'a user_id is needed';
    end if;
    perform privacy.require_reason(reason);
    if masking.has_value(lower(normalize(reason)), lower(normalize(person))) then
        raise exception 'a reason is needed that does not name the person';
    end if;
    perform from privacy.settings for update;  -- whoever is sealing has finished
    perform privacy.require_tokens_of_one_key();

    -- First what has landed, then what landed meanwhile, when nothing more can.
    not_looked_into := 0;
    foreach comparison in array array['<', '>='] loop
        if comparison = '>=' then
            perform privacy.hold_landings();
        end if;
        -- By EXECUTE: a plan that is kept may have the person in it, or be one that Citus cannot spread over its workers.
        execute format(
            $query$
                select
                    coalesce(
                        array_agg(message_id) filter (
                            where case when reason is null then subject = $1 else body_and_attributes ~ $2 end
                        ),
                        '{}'
                    ),
                    count(*) filter (
                        where reason is not null
                            and (masking.is_encoded(body) or masking.has_encoded_part(body_and_attributes))
                    )
                from masking.base_sqs__messages where load_id %s %s
            $query$, comparison, in_flight
        ) into newly_found, newly_not_looked_into using person, privacy.naming(person);
        theirs := theirs || newly_found;
        not_looked_into := not_looked_into + newly_not_looked_into;
    end loop;

    execute $query$
        select coalesce(array_agg(message_id), '{}'), coalesce(array_agg(load_id), '{}')
        from only staging.int_messages__masked where subject = $1
    $query$ into taken_ids, taken_loads using person;
    execute 'select coalesce(array_agg(message_id), ''{}'') from raw.sqs_messages where message_id = any($1)'
    into still_in_raw using taken_ids;
    select coalesce(array_agg(message_id), '{}'), coalesce(array_agg(load_id), '{}') into taken_ids, taken_loads
    from unnest(taken_ids, taken_loads) as taken (message_id, load_id)
    where message_id <> all(still_in_raw);

    from_originals := privacy.erase_originals(theirs || taken_ids);
    on_record := privacy.record('person erased', reason => reason, removed => cardinality(theirs));
    perform privacy.bury(theirs, on_record);
    insert into privacy.erased_messages (message_id, load_id, erasure)
    select message_id, load_id, on_record
    from unnest(taken_ids, taken_loads) as taken (message_id, load_id)
    on conflict do nothing;  -- what dbt has not removed since an earlier erasure
    from_raw := cardinality(theirs);
    from_analytics := cardinality(taken_ids) + cardinality(still_in_raw);
end $$;
grant execute on function privacy.forget_user(text, text) to privacy_officer;

-- Removes messages from raw and leaves their tombstones. One at a time: on Citus, raw is spread and tombstones are not;
-- and it is the body's hash that travels, to get its key here.
create or replace function privacy.bury(message_ids text[], erasure bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    message record;
begin
    for message in execute format(
        'select message_id, load_id, masking.digest(body) as digest from raw.sqs_messages where message_id = any(%L)',
        message_ids
    ) loop
        insert into privacy.erased_messages (message_id, load_id, body_mac, erasure)
        select message.message_id, message.load_id, masking.token(message.digest, key), bury.erasure
        from privacy.tombstone_key;
    end loop;
    execute 'delete from raw.sqs_messages where message_id = any($1)' using message_ids;
end $$;

-- The sealed originals of these messages that no other message has.
create or replace function privacy.erase_originals(message_ids text[]) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    -- What dbt has still to remove is nobody's. (An array, because Citus joins no table of one node with a spread one.)
    erased_before constant text[] := array(select message_id from privacy.erased_messages);
    tokens text[];
    of_others text[];
    removed bigint;
begin
    execute 'select coalesce(array_agg(token), ''{}'') from masking.base_sqs__masked_values where message_id = any($1)'
    into tokens using message_ids;
    execute format(
        'select $1 || coalesce(%s, ''{}'') from only staging.int_messages__masked where message_id = any($2)',
        privacy.token_arrays()
    ) into tokens using tokens, message_ids;
    execute $query$
        select coalesce(array_agg(token), '{}') from masking.base_sqs__masked_values
        where token = any($1) and message_id <> all($2) and is_accepted
    $query$ into of_others using tokens, message_ids;
    execute format(
        'select $1 || coalesce(%s, ''{}'') from only staging.int_messages__masked where message_id <> all($2) and (%s)',
        privacy.token_arrays(), privacy.token_columns('%I = any($3)', ' or ')
    ) into of_others using of_others, message_ids || erased_before, tokens;
    delete from privacy.originals where token = any(tokens) and token <> all(of_others);
    get diagnostics removed = row_count;
    return removed;
end $$;

-- For pipeline_owner, after a restore: what was erased since the backup is erased again, by tombstones that were kept
-- apart from it. Those of loads that the restored ledger does not have belong to no load here (0); they bar what the
-- queue may still bring. The record says, too, which rule about two persons was the last.
create or replace function privacy.erase_known() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '1min' as $$
declare
    known text[];
    removed bigint;
begin
    perform privacy.require_plain_table();
    perform from privacy.settings for update;
    perform privacy.require_tokens_of_one_key();
    with of_lost_loads as (
        delete from privacy.erased_messages as erased
        where not exists (select from raw.loads where loads.load_id = erased.load_id)
        returning *
    )
    insert into privacy.erased_messages (message_id, load_id, body_mac, erased_at, erasure)
    select distinct on (message_id) message_id, 0, body_mac, erased_at, erasure from of_lost_loads
    order by message_id, erased_at desc;
    select coalesce(array_agg(message_id), '{}') into known from privacy.erased_messages;
    perform privacy.erase_originals(known);
    execute 'delete from raw.sqs_messages where message_id = any($1)' using known;
    get diagnostics removed = row_count;
    update privacy.settings set two_persons = action = 'two persons required'
    from (
        select action from privacy.audit where action in ('two persons required', 'one person suffices')
        order by id desc
        limit 1
    ) as last_rule;
    perform privacy.record('erasures repeated', removed => removed);
    return removed;
end $$;
