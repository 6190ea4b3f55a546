-- migrate:up
-- Erasure (GDPR, article 17): a person's messages leave raw, the sealed originals and, with dbt's next run, staging and
-- analytics. What stays is that a message was erased, so that counts still add up and the queue cannot bring it back.

set local role pipeline_owner;

create table privacy.erased_messages (
    message_id text,
    load_id bigint,
    body_mac text,  -- null when raw had been purged before
    erased_at timestamptz not null default now(),
    erasure bigint not null references privacy.audit,
    primary key (message_id, load_id)  -- a message that comes back is erased again
);
create index on privacy.erased_messages (body_mac);
alter table privacy.erased_messages alter column body_mac set statistics 0;
comment on table privacy.erased_messages is 'Tombstones: the ids of erased messages and nothing about the person.';
comment on column privacy.erased_messages.load_id is 'The load that had landed it, for the conservation test.';
comment on column privacy.erased_messages.body_mac is 'Keyed hash of the body: SQS redrives a message under a new id.';

create table privacy.tombstone_key (
    only_row boolean primary key default true check (only_row),
    key bytea not null default extensions.gen_random_bytes(32)
);
insert into privacy.tombstone_key default values;
alter table privacy.tombstone_key alter column key set statistics 0;
comment on table privacy.tombstone_key is 'Key of privacy.erased_messages.body_mac. Read by pipeline_owner alone.';

-- A message that comes back is erased in the statement that lands it, and counts as landed and erased. Redelivered, it
-- has its old id. Redriven from a dead-letter queue it has a new id and the same body; but so has the login of somebody
-- who returns later, so a body stays barred only as long as SQS can hold it: two weeks in each queue.
create function privacy.erase_again() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from privacy.erased_messages) then
        with known as (
            select landed.message_id, landed.load_id, erased.body_mac, erased.erased_at, erased.erasure
            from landed inner join privacy.erased_messages as erased on landed.message_id = erased.message_id
            union all
            select landed.message_id, landed.load_id, erased.body_mac, erased.erased_at, erased.erasure
            from landed inner join privacy.erased_messages as erased
                on masking.token(landed.body, (select key from privacy.tombstone_key)) = erased.body_mac
            where erased.erased_at > now() - interval '28 days'
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

create trigger erase_again after insert on raw.sqs_messages
referencing new table as landed for each statement execute function privacy.erase_again();

-- Removes the messages of a person from raw, those named and those that say so themselves, and leaves tombstones. A
-- body that is no JSON object is the person's when it has the id in quotes. Tells the tokens that its values had.
create function privacy.erase_messages(
    user_id text,
    reason text,
    message_ids text[],
    load_ids bigint[],
    out erasure bigint,
    out removed integer,
    out tokens text[]
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    from_raw text[];
begin
    if length(btrim(reason)) < 10 is not false or strpos(reason, user_id) > 0 then
        raise exception 'a reason is needed that somebody else will understand and that does not name the person';
    end if;
    perform from privacy.settings for update;  -- whoever is sealing has finished

    from_raw := array(
        select message_id from raw.sqs_messages
        cross join lateral unnest(array[masking.parse_json(body)]) as parsed (event)
        where
            event ->> 'user_id' = user_id
            or jsonb_typeof(event) is distinct from 'object' and strpos(body, to_json(user_id)::text) > 0
            or message_id = any(message_ids)
    );
    tokens := array(
        select unnest(array[masked_ip, masked_device_id]) from masking.base_sqs__logins as logins
        where message_id = any(from_raw) and logins.reason is null
    );
    erasure := privacy.record('person erased', reason => reason, removed => cardinality(from_raw));

    insert into privacy.erased_messages (message_id, load_id, body_mac, erasure)
    select message_id, load_id, masking.token(body, (select key from privacy.tombstone_key)), erase_messages.erasure
    from raw.sqs_messages where message_id = any(from_raw);
    insert into privacy.erased_messages (message_id, load_id, erasure)
    select message_id, load_id, erase_messages.erasure
    from unnest(message_ids, load_ids) as purged (message_id, load_id)
    on conflict do nothing;  -- those in raw have theirs, and what dbt has not removed since an earlier erasure
    delete from raw.sqs_messages where message_id = any(from_raw);
    removed := cardinality(from_raw);
end $$;

-- Removes the originals behind these tokens, except those that somebody else's login still has: one that is published,
-- as the caller says, or one in a load after that.
create function privacy.erase_originals(tokens text[], of_others text[], published_to bigint) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    removed integer;
begin
    delete from privacy.originals
    where
        token = any(tokens) and token <> all(of_others)
        and token not in (
            select unnest(array[masked_ip, masked_device_id]) from masking.base_sqs__logins
            where load_id > published_to and reason is null
        );
    get diagnostics removed = row_count;
    return removed;
end $$;

-- For a privacy officer. It reads analytics with the officer's rights and not with an owner's: those tables are
-- transformer's, who might put something else in their place.
create function privacy.forget_user(user_id text, reason text) returns table (removed_from text, removed bigint)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    person constant text := user_id;
    message_ids text[];
    load_ids bigint[];
    tokens text[];
    of_others text[];
    published_to bigint;
    erased record;
begin
    select
        coalesce(array_agg(message_id), '{}'), coalesce(array_agg(load_id), '{}'),
        coalesce(array_agg(masked_ip::text) || array_agg(masked_device_id::text), '{}')
    into message_ids, load_ids, tokens
    from analytics.user_logins where user_id = person;
    select coalesce(max(load_id), 0) into published_to from analytics.user_logins;

    erased := privacy.erase_messages(person, reason, message_ids, load_ids);
    tokens := tokens || erased.tokens;
    of_others := array(
        select unnest(array[masked_ip, masked_device_id]) from analytics.user_logins
        where user_id <> person and (masked_ip = any(tokens) or masked_device_id = any(tokens))
    );
    return query values
        ('raw.sqs_messages', erased.removed::bigint),
        ('privacy.originals', privacy.erase_originals(tokens, of_others, published_to)::bigint),
        ('analytics.user_logins', cardinality(message_ids)::bigint);
end $$;

grant execute on function
    privacy.forget_user(text, text),
    privacy.erase_messages(text, text, text[], bigint[]),
    privacy.erase_originals(text[], text[], bigint)
to privacy_officer;

-- transformer removes from its own tables what is erased (dbt_project/macros/erasure.sql), and counts it.
grant select (message_id, load_id) on privacy.erased_messages to transformer;

reset role;

-- migrate:down
-- none: the way back is a backup
