-- Users of one cluster, each with the devices and addresses that connect them with others.
with

devices as (

    select
        user_id,
        masked_device_id,
        null::varchar as masked_ip,
        count(*) as logins,
        min(logged_in_at) as first_seen_at,
        max(logged_in_at) as last_seen_at
    from {{ ref('user_logins') }}
    where
        device_id_is_placeholder is not true
        and masked_device_id in ({{ shared('device_id') }})
    group by user_id, masked_device_id

),

addresses as (

    select
        user_id,
        null::varchar as masked_device_id,
        masked_ip,
        count(*) as logins,
        min(logged_in_at) as first_seen_at,
        max(logged_in_at) as last_seen_at
    from {{ ref('user_logins') }}
    where
        ip_is_placeholder is not true
        and masked_ip in ({{ shared('ip', at_most=users_that_an_ip_connects()) }})
    group by user_id, masked_ip

),

links as (

    select * from devices
    union all
    select * from addresses

),

numbered as (

    select
        *,
        dense_rank() over (order by user_id)::integer as user_number
    from links

),

edges as (

    select
        user_number,
        min(user_number) over (partition by masked_device_id, masked_ip) as first_user_number
    from numbered

),

components as (

    select analytics.components(array_agg(user_number), array_agg(first_user_number)) as smallest
    from edges

),

members as (

    select
        member.user_number,
        member.cluster_number
    from components
    cross join lateral unnest(components.smallest) with ordinality as member (cluster_number, user_number)

),

clustered as (

    select
        min(numbered.user_id) over (partition by members.cluster_number) as cluster_id,
        numbered.user_id,
        numbered.masked_device_id,
        numbered.masked_ip,
        numbered.logins,
        numbered.first_seen_at,
        numbered.last_seen_at
    from numbered
    inner join members on numbered.user_number = members.user_number

)

select * from clustered
